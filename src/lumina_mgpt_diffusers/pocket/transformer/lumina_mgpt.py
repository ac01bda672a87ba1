# Leads diffusers to the class in the package `lumina-mgpt-diffusers`, which has to be installed.
from lumina_mgpt_diffusers import LuminaMGPTTransformer


__all__ = ["LuminaMGPTTransformer"]
