from pathlib import Path

from setuptools import find_packages, setup

root = Path(__file__).parent
version = next(
    line.split('"')[1]
    for line in (root / "paddlescience_gradnorm/__init__.py").read_text().splitlines()
    if line.startswith("__version__")
)
plot = ["matplotlib>=3.6", "rich>=12"]
visualdl = ["visualdl>=2.5"]
tensorboard = ["tensorboardX>=2.6"]
notebook = ["nbclient>=0.6", "nbformat>=5", "ipykernel>=6"]
safetensors = ["safetensors>=0.4"]
test = [
    *plot,
    *notebook,
    *safetensors,
    "pytest>=7",
    "pytest-xdist>=3.2",
    "hypothesis>=6.80",
    "build>=1.0",
]
ppsci = ["paddlesci>=1.4,<1.5"]
deepxde = ["deepxde>=1.15,<1.16"]
docs = [
    "django-static-mathjax>=3.2",  # MathJax's files; it needs no Django
    "jieba>=0.42",  # finds the words of a Chinese page, for the search
    "mkdocs-material>=9.5",
    "mkdocs-static-i18n>=1.2",
    "mkdocstrings[python]>=0.26",
    "ruff>=0.6,<1",  # formats the signatures
]
dev = [*test, "ruff>=0.6,<1", "mypy>=1.11,<3"]

setup(
    name="paddlescience_gradnorm",
    version=version,
    description=(
        "GradNorm loss balancing for physics-informed neural networks "
        "on PaddlePaddle and PaddleScience"
    ),
    long_description=(root / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords="GradNorm PINN PaddlePaddle PaddleScience loss-balancing multitask",
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering",
        "Typing :: Typed",
    ],
    packages=find_packages(include=["paddlescience_gradnorm*"]),
    package_data={
        "paddlescience_gradnorm": [
            *("py.typed", "_operators/*.cc", "_operators/*.h", "training/page.html")
        ]
    },
    python_requires=">=3.9",
    install_requires=["numpy>=1.21", "sympy>=1.11", "scipy>=1.8", "tqdm>=4.60"],
    extras_require={
        "cpu": ["paddlepaddle>=2.6.2"],
        # The newest paddlepaddle-gpu on PyPI is 2.6.2, which was built for numpy 1.
        "gpu": ["paddlepaddle-gpu>=2.6.2", "numpy<2"],
        "plot": plot,
        "safetensors": safetensors,
        "visualdl": visualdl,
        "tensorboard": tensorboard,
        "test": test,
        "dev": dev,
        "docs": docs,  # without Paddle: the docstrings are read, not imported
        "deepxde": deepxde,
        "deepxde-test": [*test, *deepxde],
        # PaddleScience, which asks for numpy 1, and what its Solver can log to.
        "ppsci": ppsci,
        "ppsci-test": [*test, *ppsci, *visualdl, *tensorboard, "wandb>=0.16"],
    },
)
