"""Run the command line for ``python -m mmzoo`` and ``accelerate launch -m mmzoo``."""

from mmzoo.cli import main

if __name__ == "__main__":
    main()
