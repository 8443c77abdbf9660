"""The container files and the operations guide: linted, pinned, and in agreement with the code. Nothing is started."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import compose_spec
import pytest
import yaml

from xqg_vdb import errors

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
COMPOSE = sorted(DOCKER.glob("compose*.yml"))
ERRORS = (ROOT / "docs" / "errors.md").read_text("utf-8")


def services(path):
    return yaml.safe_load(path.read_text("utf-8"))["services"]


def images():
    for path in COMPOSE:
        for service in services(path).values():
            if "image" in service:
                yield service["image"]
    for line in (DOCKER / "Dockerfile").read_text().splitlines():
        found = re.match(r"FROM (\S+)", line)
        if found and ":" in found[1]:
            yield found[1]


def test_the_dockerfile_passes_its_linter():
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or "hadolint"
    done = subprocess.run([hadolint, "--no-color", DOCKER / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("path", COMPOSE, ids=lambda path: path.name)
def test_compose_files_follow_the_specification(path):
    """Variables are filled in and merge keys resolved as Compose does, then the specification's parser reads them."""
    text = re.sub(r"\$\{\w+(:?[-?][^}]*)?\}", "x", path.read_text("utf-8"))
    document = {key: value for key, value in yaml.safe_load(text).items() if not key.startswith("x-")}
    parsed = compose_spec.PyCompose.from_yaml(yaml.safe_dump(document))
    parsed.validate()
    assert set(parsed.service_names()) == set(services(path))


def test_images_are_pinned_to_a_whole_version():
    assert [image for image in images() if not re.search(r":v?\d+\.\d+\.\d+", image)] == []
    assert len(set(images())) == 2


def test_every_server_has_a_key_a_health_check_and_a_volume_and_listens_here_only():
    for path in COMPOSE:
        for name, service in services(path).items():
            if not name.startswith("qdrant"):
                continue
            assert service["environment"]["QDRANT__SERVICE__API_KEY"].startswith("${QDRANT_API_KEY:?"), name
            assert "/readyz" in service["healthcheck"]["test"][-1], name
            assert any(volume.endswith(":/qdrant/storage") for volume in service["volumes"]), name
            assert all(port.startswith("127.0.0.1:") for port in service["ports"]), name


def test_the_image_installs_what_the_package_asks_for_pinned():
    pinned = dict(line.lower().split("==") for line in (DOCKER / "constraints.txt").read_text().split())
    asked = re.search(r"^dependencies = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL | re.MULTILINE)[1]
    names = {re.match(r"[\w-]+", one)[0] for one in re.findall(r'"([^"]+)"', asked)}
    assert names <= set(pinned)
    assert "torch" not in pinned and "transformers" not in pinned


def test_the_table_of_errors_names_every_exit_code_and_class():
    rows = {int(code): row for code, row in re.findall(r"^\| (\d+) \| (.*)$", ERRORS, re.MULTILINE)}
    kinds = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.XqgError)]
    assert len(kinds) > 8
    for kind in kinds:
        assert f"`{kind.__name__}`" in rows[kind.exit_code], kind.__name__
    assert set(rows) == {0, 2, 130, 143} | {kind.exit_code for kind in kinds}


@pytest.mark.parametrize("said", re.findall(r'^- \*\*"([^"]+)"\*\*', ERRORS, re.MULTILINE))
def test_messages_that_the_guide_explains_are_in_the_code(said):
    code = "\n".join(path.read_text("utf-8") for path in (ROOT / "xqg_vdb").rglob("*.py"))
    for words in re.split(r"process N|20 points, 21|1\.9\.2| …", said):
        assert words.strip() in code, words


def test_what_the_container_writes_outlives_it_and_belongs_to_its_user():
    """By reading: named volumes lie where the image has folders of uid 10001, and nothing else is written to."""
    image = (DOCKER / "Dockerfile").read_text("utf-8").partition(" AS cli")[2].partition("FROM cli")[0]
    assert "--uid 10001 xqg" in image and "USER 10001" in image and '"${wheel}[starter]"' in image
    owned = re.search(r"install --directory --owner xqg (.*)", image)[1].split()
    service = yaml.safe_load((DOCKER / "compose.yml").read_text("utf-8"))
    volumes = service["services"]["xqg-vdb"]["volumes"]
    mounts = dict(reversed(volume.removesuffix(":ro").rsplit(":", 1)) for volume in volumes)
    kept = {target for target, source in mounts.items() if source in service["volumes"]}
    assert kept == set(owned) == {"/data", "/home/xqg/.cache"}
    assert [volume for volume in volumes if volume.endswith(":/work:ro")], "the corpus is only read"
    assert "WORKDIR /data" in image and "XQG_VDB_PATH=/data/" in image and "HOME=/home/xqg" in image
