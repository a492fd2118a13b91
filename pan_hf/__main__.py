"""`pan`, and `python -m pan_hf`: the command line, or the line that installs it."""

import sys


def main() -> None:
    try:
        from pan_hf.cli import main as run
    except ImportError as error:
        sys.exit(f"Error: {error}")
    run()


if __name__ == "__main__":
    main()
