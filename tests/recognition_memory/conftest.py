"""The losses of Orhan 2022 as a fixture, for everything that is checked on them."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest


@pytest.fixture(scope="session")
def igpt_brady() -> ModuleType:
    """The module that packs and unpacks the stored losses."""
    spec = importlib.util.spec_from_file_location("igpt_brady", Path(__file__).with_name("igpt_brady.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def igpt_brady_losses(igpt_brady: ModuleType) -> pd.DataFrame:
    """The stored losses of five models on Brady's stimuli, a memory table of 306,000 rows."""
    return igpt_brady.unpack(igpt_brady.PACKED.read_bytes())
