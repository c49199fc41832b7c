"""Stage 1 of other libraries' networks: their preprocessing as the manifest says it, exactly or not at all.

    of_torchvision(ResNet50_Weights.IMAGENET1K_V2)
    of_timm(timm.create_model("tf_efficientnet_lite0").pretrained_cfg)
    of_transformers(json.loads(Path("folder/preprocessor_config.json").read_text()))

Pixels are those that the library's own Pillow pipeline gives, bit for bit; `benchmarks/preprocessing.py` measures it. A
step that the manifest cannot say raises an ImgclsError that names the step. None of this imports the libraries.
"""

from imgcls.networks.stage_1.result import AS_PILLOW_OPENS, Stage1
from imgcls.networks.stage_1.timm import of_timm
from imgcls.networks.stage_1.torchvision import of_torchvision
from imgcls.networks.stage_1.transformers import of_transformers

__all__ = ["AS_PILLOW_OPENS", "Stage1", "of_timm", "of_torchvision", "of_transformers"]
