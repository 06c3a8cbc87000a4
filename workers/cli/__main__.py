"""``python -m workers.cli`` is the command ``callboard``."""

from workers.cli import main

if __name__ == "__main__":
    main()
