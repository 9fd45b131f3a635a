"""Packaging. `mopd_jax/kernels` is a symbolic link to `kernels/ops`: one path serves the
checkout, an editable install and the wheel; `kernels/` itself has no `__init__.py`, because a
top-level import name `kernels` would shadow the distribution of that name."""

from setuptools import find_packages, setup

EXTRAS = {
    "tpu": ["jax[tpu]"],
    "cuda": ["jax[cuda13]"],
    # TFDS without tensorflow; pyarrow comes with it. The second is one it does not declare.
    "data": ["tensorflow-datasets>=4.9.10", "importlib_resources", "huggingface_hub"],
    "smollm2": ["gguf", "reasoning-gym"],
    "report": ["matplotlib"],
    # The parser's version is that of the grammar: math-verify 0.9 reads with antlr 4.13.2.
    "verifiers": ["math-verify==0.9.*", "antlr4-python3-runtime==4.13.2"],
    "eval": ["sacrebleu"],
    # Beside `test`, not in it: at 0.1.7 it holds transformers back by way of safetensors.
    "tunix": ["google-tunix>=0.1.7"],
}
EXTRAS["test"] = [
    *EXTRAS["data"],
    *EXTRAS["smollm2"],
    *EXTRAS["report"],
    *EXTRAS["verifiers"],
    *EXTRAS["eval"],
    "equinox>=0.13",
    "pytest",
    "pytest-xdist",
    "hypothesis",
    "psutil",
    "ruff",
    "nbformat",
    "nbclient",
    "ipykernel",
    "setuptools",
]

setup(
    name="mopd_jax",
    version="0.1.0",
    description="Multi-Rollout On-Policy Distillation (arXiv 2605.12652) in JAX",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["mopd_jax", "mopd_jax.*"]),
    package_dir={"": "."},
    package_data={"mopd_jax": ["assets/*/*"]},
    install_requires=[
        "jax>=0.10",
        "flax>=0.12",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12",
        "transformers>=5",
        "ml-collections>=1.1",
        "numpy",
        "safetensors",
        "tokenizers",
        "jinja2",
        "tensorboardX",
        "tqdm",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["mopd=mopd_jax.cli:main"]},
)
