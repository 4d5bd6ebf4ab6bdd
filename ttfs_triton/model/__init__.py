"""Networks as files, here or on the Hugging Face Hub: saving, loading, classifying."""

from ttfs_triton.model.classification import Classification, ClassScore
from ttfs_triton.model.description import BaseModel, LoadError, ModelDescription, Preprocessing
from ttfs_triton.model.files import ModelFiles, bundled_facts, bundled_names, find_model
from ttfs_triton.model.hub import HubError
from ttfs_triton.model.model import TTFSModel

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
    "bundled_facts",
    "bundled_names",
    "find_model",
]
