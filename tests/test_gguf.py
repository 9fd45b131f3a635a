"""GGUF files, written here the way llama.cpp's converter writes them."""

import dataclasses

import gguf
import numpy as np
import pytest
from test_weights import CONFIGS, assert_equal, random_params

from mopd_jax import weights
from mopd_jax.config import ConfigError
from mopd_jax.models import families
