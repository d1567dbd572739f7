"""Imported before torch: its threads wait asleep, for spinning comes to nothing where other processes want the cores."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
