from services.notifier.app import run
from services.notifier.settings import Settings
from shared.lifespan import main

if __name__ == "__main__":
    main("notifier", Settings, run)
