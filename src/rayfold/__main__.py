"""``python -m rayfold`` runs the command line."""

from rayfold.cli import entry

if __name__ == "__main__":
    entry()
