"""Imported before torch: its threads sleep while they wait. To spin comes to nothing where others want the cores."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
