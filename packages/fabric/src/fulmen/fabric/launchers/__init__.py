"""Start the processes of a run, and end them together."""

from typing import TYPE_CHECKING

from fulmen.fabric.lazy_face import lazy_face

if TYPE_CHECKING:
    from fulmen.fabric.launchers.base import Launcher as Launcher
    from fulmen.fabric.launchers.script import ScriptLauncher as ScriptLauncher
    from fulmen.fabric.launchers.spawn import SpawnLauncher as SpawnLauncher

__all__ = ["Launcher", "ScriptLauncher", "SpawnLauncher"]
__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "Launcher": "fulmen.fabric.launchers.base",
        "ScriptLauncher": "fulmen.fabric.launchers.script",
        "SpawnLauncher": "fulmen.fabric.launchers.spawn",
    },
)
