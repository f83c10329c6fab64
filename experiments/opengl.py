"""Prints the MUJOCO_GL that works here, or says in one line that none does.

    export MUJOCO_GL=$(python -m experiments.opengl)

Only pixels drawn by MuJoCo need OpenGL; the worlds of this repository draw themselves with numpy.
"""

import os
import subprocess
import sys

OFF = "off"
PROBE = "from dm_control._render import Renderer; Renderer(8, 8).free()"


def candidates() -> tuple[str, ...]:
    """Returns the backends to try; GLFW needs a display, and without one it fails only when it draws."""
    display = "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
    return ("glfw", "egl", "osmesa") if display else ("egl", "osmesa")


def works(name: str) -> bool:
    """Returns whether a fresh process opens a context: a driver that fails could take this one down."""
    command = [sys.executable, "-W", "error", "-c", PROBE]
    done = subprocess.run(command, env=os.environ | {"MUJOCO_GL": name}, capture_output=True, timeout=60, check=False)
    return done.returncode == 0


def backend() -> str:
    """Returns the user's own MUJOCO_GL if it is set, else the first backend that works, else `OFF`."""
    return os.environ.get("MUJOCO_GL") or next((name for name in candidates() if works(name)), OFF)


if __name__ == "__main__":
    found = backend()
    if found == OFF:
        print("no OpenGL here: MuJoCo draws no pixels (Debian: apt install libegl1 for them), all else goes on", file=sys.stderr)
    print(found)
