"""Programs: train, evaluate, benchmark."""

import importlib.util
import sys

if importlib.util.find_spec("ml_collections") is None:
    sys.exit("error: programs need more than the library: pip install -e '.[programs]'.")
