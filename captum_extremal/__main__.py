"""``python -m captum_extremal`` is ``captum-extremal``."""

from __future__ import annotations

from captum_extremal.cli.main import main

if __name__ == "__main__":
    main(prog_name="captum-extremal")
