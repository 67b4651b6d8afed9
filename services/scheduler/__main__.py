from services.scheduler.app import run
from services.scheduler.settings import Settings
from shared.lifespan import main

if __name__ == "__main__":
    main("scheduler", Settings, run)
