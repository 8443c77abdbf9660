"""What the three framework modules have in common."""

import subprocess
import sys

CODE = """
import importlib, sys
from xqg_vdb.errors import MissingExtra
for module, package in [("langchain", "langchain_core"), ("llama_index", "llama_index"), ("haystack", "haystack")]:
    sys.modules[package] = None  # as if it were not installed
    try:
        importlib.import_module(f"xqg_vdb.integrations.{module}")
    except MissingExtra as error:
        print(error)
"""


def test_a_missing_framework_is_named_with_its_extra():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    endings = [line.partition(": ")[2] for line in done.stdout.splitlines()]
    assert endings == [f"pip install 'xqg-vdb[{extra}]'" for extra in ("langchain", "llama-index", "haystack")]
