"""``python -m rayfold`` runs the command line."""

from rayfold.cli import main

if __name__ == "__main__":
    main()
