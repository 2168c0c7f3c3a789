"""`python -m headcam` is the `headcam` command."""

from headcam.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
