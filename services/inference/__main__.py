from services.inference.app import run
from services.inference.settings import Settings
from shared.lifespan import main

if __name__ == "__main__":
    main("inference", Settings, run)
