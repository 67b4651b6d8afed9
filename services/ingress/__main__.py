from services.ingress.app import run
from services.ingress.settings import Settings
from shared.lifespan import main

if __name__ == "__main__":
    main("ingress", Settings, run)
