"""``python -m tools.soundness``."""

from tools.soundness.run import main

if __name__ == "__main__":
    main()
