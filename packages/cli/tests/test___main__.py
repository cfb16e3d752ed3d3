import subprocess
import sys


def test_the_package_is_the_command():
    ended = subprocess.run(
        [sys.executable, "-m", "fulmen.cli", "examples"], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    assert "lightning-cli" in ended.stdout
    ended = subprocess.run([sys.executable, "-m", "fulmen.cli", "fitt"], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    assert ended.stderr.startswith("lightning-cli: error: "), ended.stderr
