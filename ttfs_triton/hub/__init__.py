"""Models on the Hugging Face Hub: saving, loading, classifying, publishing."""

from ttfs_triton.hub.classification import Classification, ClassScore
from ttfs_triton.hub.description import BaseModel, ModelDescription, Preprocessing
from ttfs_triton.hub.errors import HubError, LoadError
from ttfs_triton.hub.locate import ModelFiles, find_model
from ttfs_triton.hub.model import TTFSModel

__all__ = [
    "BaseModel",
    "ClassScore",
    "Classification",
    "HubError",
    "LoadError",
    "ModelDescription",
    "ModelFiles",
    "Preprocessing",
    "TTFSModel",
    "find_model",
]
