"""The wheel, built from a clone with a tag, does its work in a bare environment elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parent.parent
TAGGED = "9.8.7"

pytestmark = pytest.mark.slow


def done(*command: str, cwd: Path) -> str:
    """What it printed; it must have gone well."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    ended = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a repository of its own that holds what this one would, with a tag."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    folder = tmp_path_factory.mktemp("clone")
    left_out = shutil.ignore_patterns(".git", ".venv", "build", "dist", "*.egg-info", ".*_cache", "__pycache__")
    clone = shutil.copytree(ROOT, folder / "adamtune", symlinks=True, ignore=left_out)
    git = ("git", "-c", "user.name=tester", "-c", "user.email=tester@example.org", "-c", "commit.gpgsign=false")
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "All"], ["tag", f"v{TAGGED}"]):
        done(*git, *command, cwd=clone)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    done(*build, "--wheel-dir", str(folder / "dist"), ".", cwd=clone)
    (built,) = (folder / "dist").iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Run a command of an environment that has the wheel and, by a path, what it needs; in a folder of its own."""
    folder = tmp_path_factory.mktemp("bare")
    done(sys.executable, "-m", "venv", "--without-pip", "env", cwd=folder)
    bin = folder / "env" / ("Scripts" if os.name == "nt" else "bin")
    install = [sys.executable, "-m", "pip", "--python", str(bin / "python"), "install", "--quiet", "--no-deps"]
    done(*install, "--no-index", str(wheel), cwd=folder)
    (site,) = (folder / "env").glob("lib/python*/site-packages")
    (site / "needs.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    work = folder / "work"
    work.mkdir()

    def run(command: str, *arguments: str) -> str:
        return done(str(bin / command), *arguments, cwd=work)

    return run


def test_it_is_named_by_the_tag_and_holds_recipes_and_templates(wheel: Path) -> None:
    assert wheel.name == f"adamtune-{TAGGED}-py3-none-any.whl"
    names = set(ZipFile(wheel).namelist())
    wanted = [*ROOT.glob("adamtune/**/*.py"), *ROOT.glob("adamtune/templates/*/*.yaml"), ROOT / "adamtune" / "py.typed"]
    assert {str(path.relative_to(ROOT)) for path in wanted} <= names
    assert {f"adamtune/recipes/{path.name}" for path in (ROOT / "recipes").glob("*.yaml")} <= names
    assert {name.split("/")[0] for name in names} == {"adamtune", f"adamtune-{TAGGED}.dist-info"}


def test_it_does_its_work_where_there_is_no_clone(installed: Callable[..., str]) -> None:
    where = installed("python", "-c", "import adamtune; print(adamtune.__file__, adamtune.__version__)").split()
    assert "/env/lib/" in where[0]
    assert where[1] == TAGGED
    assert installed("adamtune", "--version") == f"adamtune {TAGGED}\n"
    assert len(json.loads(installed("adamtune", "recipes", "--json"))["recipes"]) == 8

    installed("adamtune", "init", "mine", "--kind", "pytorch")
    assert json.loads(installed("adamtune", "doctor", "--task", "mine/task.py:task", "--json"))["ok"]
    found = json.loads(installed("adamtune", "lr-find", "mine/task.py:task", "--horizon", "100", "--json"))
    assert found["status"] == "ok"
    result = json.loads(installed("adamtune", "sweep", "mine/spec.yaml", "--run-dir", "mine/run", "--json"))
    assert result["recommended"]["mean"] < result["default"]["mean"]
    assert "def build_optimizer" in installed("adamtune", "export", "mine/run")
