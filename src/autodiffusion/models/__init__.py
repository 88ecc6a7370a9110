"""Model families: what turns a name, a folder or a checkpoint into a Model. One file a family."""

from __future__ import annotations

from autodiffusion.models._captions import Captions
from autodiffusion.models._load import load
from autodiffusion.models._model import Model

__all__ = ["Captions", "Model", "load"]
