import sys
from pathlib import Path

# Test files cannot import each other; what several of them need lies beside them.
sys.path.insert(0, str(Path(__file__).parent))
