"""The smallest member of each of timm's families builds, fills, learns a step and predicts, on 3 and on 9 channels."""

import pytest
import timm
import torch

from ich_kaggle.learning import pretrained
from ich_kaggle.learning.slice_model import SliceConfig, SliceModel

FINE = {  # by the px of the test: some take their own size only, others need a few pixels
    64: """
        beit_base_patch16_224 convmixer_768_32 convnext_atto_rms cs3darknet_focus_s cspnext_tiny
        davit_tiny deit_tiny_patch16_224 densenet121 edgenext_xx_small tinynet_d efficientvit_b0 efficientvit_m0
        vit_tiny_patch16_dinov3_qkvb fasternet_t0 focalnet_tiny_srf ghostnet_050 hardcorenas_b hgnetv2_b0
        sam2_hiera_tiny hrnet_w18_small inception_next_atto lcnetv2_small lowformer_b0 mambaout_femto
        maxvit_pico_rw_256 poolformer_s12 lcnet_035 mobilenetv5_base mobilevit_xxs mvitv2_tiny nasnetalarge
        nextvit_small nf_regnet_b0 pnasnet5large pvt_v2_b0 qwen3_vit_88m rdnet_tiny regnetx_004_tv repghostnet_050
        res2net50_26w_4s resnest14d resnet18 rexnet_100 selecsls42 legacy_seresnet18 shvit_s1 skresnet18
        starnet_s050 swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 swinv2_cr_tiny_224 tiny_vit_5m_224
        tnt_s_legacy_patch16_224 twins_svt_small vgg11 vit_tiny_patch16_224 vit_tiny_r_s16_p8_224
        vit_srelpos_small_patch16_224 vitamin_small_224 ese_vovnet19b_slim_dw legacy_xception xception41p
        xcit_nano_12_p8_224 mobileone_s1 fastvit_t8 repvgg_a0
        coat_tiny cpubone_nano dla34 dpn48b efficientvim_m1 iformer_t repvit_m1 resnetv2_18 sequencer2d_s swiftformer_xs
    """,
    128: """
        inception_resnet_v2 inception_v3 inception_v4
    """,
    224: """
        cait_xxs24_224 convit_tiny gcvit_xxtiny hiera_tiny_224 gmlp_ti16_224 nest_tiny pit_ti_224 visformer_tiny
        volo_d1_224 efficientformer_l1 efficientformerv2_s0 levit_128
    """,
    240: """
        crossvit_tiny_240
    """,
    256: """
        eca_botnext26ts_256
    """,
}
NINE = (-1, 0, 1)


def all_of(names: dict[int, str]) -> list:
    found = [(arch, px) for px, text in names.items() for arch in text.split()]
    return [pytest.param(arch, px, marks=has(arch), id=arch) for arch, px in found]


def has(arch: str):
    return pytest.mark.skipif(not timm.is_model(arch), reason="newer than this timm")


@pytest.mark.slow
@pytest.mark.parametrize("arch, px", all_of(FINE))
def test_the_smallest_member_of_a_family_works_on_one_slice_and_on_three(arch, px):
    plain, nine = (SliceModel(SliceConfig(arch, px, 64, offsets=offsets)) for offsets in ((0,), NINE))
    images = torch.randint(0, 256, (2, px, px, 9), dtype=torch.uint8)
    plain(images[..., :3]).sum().backward()
    assert plain.head.weight.grad.isfinite().all()
    assert "weights: all" in pretrained.fill(nine.backbone, plain.backbone.state_dict(), arch, arch)
    for model, channels in ((plain, 3), (nine, 9)):
        logits, embedding = model.eval().outputs(images[..., :channels])
        assert logits.shape == (2, 6) and logits.isfinite().all() and embedding.shape == (2, model.embedding_size)


def test_a_network_with_several_classifiers_gets_a_head_of_its_own_and_loads_its_weights_without_theirs():
    source = timm.create_model("levit_128").state_dict()
    model = SliceModel(SliceConfig("levit_128", 224, 64))
    assert list(dict(model.named_parameters()))[-2:] == ["backbone.own_head.weight", "backbone.own_head.bias"]
    assert "weights: all" in pretrained.fill(model.backbone, source, "w", "levit_128")
    images = torch.randint(0, 256, (1, 224, 224, 3), dtype=torch.uint8)
    with torch.no_grad():
        both = timm.create_model("levit_128", num_classes=0).eval()
        both.load_state_dict(source, strict=False)
        logits, embedding = model.eval().outputs(images)
        expected = both.forward_head(both.forward_features(model.normalised(images)), pre_logits=True)
    assert torch.equal(embedding, expected) and torch.equal(logits, model.head(embedding))


def test_a_convolution_of_one_pixel_gives_the_same_without_its_stride():
    torch.manual_seed(0)
    plain = timm.create_model("repvgg_a0", num_classes=6).eval()
    model = SliceModel(SliceConfig("repvgg_a0", 64, 64)).eval()
    model.backbone.load_state_dict(plain.state_dict())
    images = torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(model(images), plain(model.normalised(images)), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_first_layer_that_timm_does_not_adapt_is_told():
    source = timm.create_model("tresnet_m").state_dict()
    plain, nine = (SliceModel(SliceConfig("tresnet_m", 64, 64, offsets=k)).backbone for k in ((0,), NINE))
    assert "weights: all" in pretrained.fill(plain, source, "w", "tresnet_m")
    with pytest.raises(ValueError, match="1 of .* weights do not fit: .* is .*48, 3, 3.*, not .*144"):
        pretrained.fill(nine, source, "w", "tresnet_m")
