"""``python -m mmzoo``, and what ``accelerate launch -m mmzoo`` runs."""

from mmzoo.cli import main

if __name__ == "__main__":
    main()
