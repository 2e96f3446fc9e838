"""Loading, pre- and post-processing of GenEval's networks, on tiny random ones and on logits made by hand."""

import pytest
import torch
from PIL import Image
from tiny_geneval import NAMES, SIDES, save_clip, save_mask2former, save_maskformer, save_yolos
from torch.nn.functional import cosine_similarity
from transformers import (
    CLIPModel,
    CLIPProcessor,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    YolosForObjectDetection,
)

from dgpo.errors import UserError
from dgpo.rewards.builtin.geneval.colors import TEMPLATES, ColorClassifier, crop
from dgpo.rewards.builtin.geneval.detector import load_detector
from dgpo.rewards.builtin.geneval.masks import Geometry, instances, prepare
from dgpo.rewards.builtin.geneval.vocabulary import COLORS


def pictures(number=2, height=48, width=48):
    return torch.randint(0, 256, (number, 3, height, width), generator=torch.Generator().manual_seed(0)).byte()


@pytest.fixture(scope="module")
def mask2former(tmp_path_factory):
    return save_mask2former(tmp_path_factory.mktemp("mask2former"))


@pytest.fixture(scope="module")
def yolos(tmp_path_factory):
    return save_yolos(tmp_path_factory.mktemp("yolos"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip"))


def load(folder, dtype="float32"):
    return load_detector(str(folder), "cpu", dtype, SIDES)


@pytest.mark.parametrize(
    ("height", "width", "scaled", "padded"),
    [
        (512, 512, (800, 800), (800, 800)),
        (768, 1024, (800, 1067), (800, 1088)),  # 1066.67 rounds
        (1024, 512, (1333, 667), (1344, 672)),  # the long side binds; 666.5 rounds up
    ],
)
def test_sizes_are_those_of_genevals_detector(height, width, scaled, padded):
    inputs, geometry = prepare(torch.zeros(1, 3, height, width).byte(), (800, 1333))
    assert geometry == Geometry((height, width), scaled, padded)
    assert inputs.shape == (1, 3, *padded)
    assert inputs[0, :, 0, 0].tolist() == pytest.approx([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225])
    assert not inputs[:, :, scaled[0] :].any()  # the padding is zero after the normalisation
    assert not inputs[:, :, :, scaled[1] :].any()


@pytest.mark.parametrize("size", [32, 96, 64])
def test_pixels_are_those_of_transformers_processor(size):
    images = pictures(2, size, size)
    processor = Mask2FormerImageProcessor(size={"shortest_edge": 64, "longest_edge": 128})
    theirs = processor(images=[Image.fromarray(one.permute(1, 2, 0).numpy()) for one in images], return_tensors="pt")
    ours, _ = prepare(images, SIDES)
    level = 1 / 255 / 0.224  # they round to 8 bits after each of two passes
    assert (ours - theirs["pixel_values"]).abs().max() < (1e-5 if size == 64 else 1.1 * level)


def test_an_instance_by_hand():
    classes = torch.full((3, 3), -20.0)  # two classes and "no object"
    classes[0, 1] = 20.0
    classes[1, 2] = 20.0
    classes[2] = torch.tensor([0.41, 0.39, 0.2]).log()  # unsure: two detections of one mask
    masks = torch.full((3, 8, 8), -5.0)
    masks[0, 2:5, 3:7] = torch.tensor(0.8).logit()
    masks[1], masks[2] = 5.0, 5.0
    geometry = Geometry((8, 8), (8, 8), (8, 8))
    found = instances(classes, masks, geometry, {0: "cat", 1: "dog"})
    assert [one.label for one in found] == ["dog", "cat", "dog"]
    assert found[0].score == pytest.approx(0.8)
    assert found[0].box == (3, 2, 7, 5)
    assert found[0].mask is not None
    assert found[0].mask.nonzero().min(0).values.tolist() == [2, 3]
    assert found[1].score == pytest.approx(0.41 * torch.tensor(5.0).sigmoid().item())
    assert found[1].box == (0, 0, 8, 8)


def test_an_instance_below_the_threshold_or_without_a_mask_is_none():
    classes = torch.tensor([[20.0, -20.0]])
    geometry = Geometry((4, 4), (4, 4), (4, 4))
    for logit in (0.0, -3.0):  # not positive: no mask
        assert not instances(classes, torch.full((1, 4, 4), logit), geometry, {0: "cat"})
    unsure = torch.tensor([[0.3, 0.7]]).log()
    assert not instances(unsure, torch.full((1, 4, 4), 20.0), geometry, {0: "cat"})
    half = torch.tensor([[0.55, 0.45]]).log()  # 0.55 sure of the class, 0.54 of the mask
    assert not instances(half, torch.full((1, 4, 4), 0.16), geometry, {0: "cat"})


def test_padding_is_cut_off_before_masks_are_scaled_back():
    masks = torch.full((1, 4, 6), -5.0)
    masks[:, :, 3:] = 5.0  # columns 4 and 5 are padding
    classes = torch.tensor([[20.0, -20.0]])
    (one,) = instances(classes, masks, Geometry((40, 40), (16, 16), (16, 24)), {0: "cat"})
    assert one.box == (30, 0, 40, 40)


def test_confidences_are_those_of_transformers_post_processing(mask2former):
    """Its masks are always of 384 by 384, so the pictures are here."""
    network = load(mask2former)._network
    with torch.no_grad():
        outputs = network(pixel_values=torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)))
    geometry = Geometry((384, 384), (384, 384), (384, 384))
    ours = instances(outputs.class_queries_logits[0], outputs.masks_queries_logits[0], geometry, dict(enumerate(NAMES)))
    processor = Mask2FormerImageProcessor()
    theirs = processor.post_process_instance_segmentation(outputs, threshold=0.3)[0]["segments_info"]
    assert len(ours) >= 2
    expected = sorted((NAMES[one["label_id"]], one["score"]) for one in theirs)
    assert sorted((one.label, round(one.score, 4)) for one in ours) == [
        (n, pytest.approx(s, abs=1e-4)) for n, s in expected
    ]


@pytest.mark.parametrize(("height", "width"), [(48, 48), (40, 100)])
def test_mask2former_from_disk(mask2former, height, width):
    detector = load(mask2former)
    assert detector.labels == set(NAMES)
    found = detector(pictures(3, height, width))
    assert len(found) == 3
    assert sum(map(len, found)) >= 3
    for one in (one for same in found for one in same):
        left, top, right, bottom = map(int, one.box)
        assert one.mask.shape == (height, width)
        assert one.mask.sum() == one.mask[top:bottom, left:right].sum()
        assert 0.3 < one.score <= 1


def test_a_picture_is_seen_the_same_in_any_batch(mask2former, yolos):
    for folder in (mask2former, yolos):
        detector = load(folder)
        together, alone = detector(pictures(3)), [detector(one[None])[0] for one in pictures(3)]
        assert sum(map(len, together)) >= 6
        for found, same in zip(together, alone):
            assert [one.label for one in found] == [one.label for one in same]
            for one, other in zip(found, same):
                assert (one.score, *one.box) == pytest.approx((other.score, *other.box), abs=1e-3)


def test_maskformer_from_disk(tmp_path):
    detector = load(save_maskformer(tmp_path))
    assert detector.labels == set(NAMES)
    assert len(detector(pictures())) == 2


def test_a_detector_of_boxes_from_disk(yolos):
    detector = load(yolos)
    assert detector.labels == set(NAMES)
    images = pictures(2, 40, 60)
    found = detector(images)
    assert sum(map(len, found)) >= 2
    inputs = detector._processor(images=list(images.permute(0, 2, 3, 1).numpy()), return_tensors="pt")
    with torch.no_grad():
        outputs = YolosForObjectDetection.from_pretrained(yolos).eval()(inputs["pixel_values"])
    scores, labels = outputs.logits.softmax(-1)[..., :-1].max(-1)
    for place, same in enumerate(found):
        sure = scores[place] > 0.3
        assert [one.label for one in same] == [NAMES[label] for label in labels[place][sure]]
        assert [one.score for one in same] == pytest.approx(scores[place][sure].tolist(), abs=1e-5)
        x, y, width, height = (outputs.pred_boxes[place][sure] * torch.tensor([60, 40, 60, 40])).unbind(-1)
        boxes = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], -1)
        clipped = boxes.clamp(min=0).minimum(torch.tensor([60, 40, 60, 40]))
        assert torch.allclose(torch.tensor([one.box for one in same]), clipped, atol=1e-3)
        assert all(one.mask is None for one in same)


def test_half_precision(mask2former, yolos):
    for folder in (mask2former, yolos):
        assert len(load(folder, "bfloat16")(pictures())) == 2


@pytest.mark.parametrize("which", ["mask2former", "yolos"])
def test_overflow_is_never_nothing_found(which, request):
    detector = load(request.getfixturevalue(which))
    next(detector._network.parameters()).data.fill_(float("nan"))
    with pytest.raises(RuntimeError, match="detector of the GenEval reward returned values that are not finite"):
        detector(pictures())


def test_what_cannot_be_loaded_is_named(tmp_path, clip, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=r"the reward geneval cannot load .*nowhere"):
        load(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"is a clip model; give a mask2former or maskformer"):
        load(clip)
    with pytest.raises(UserError, match=r"the reward geneval cannot load .*nowhere' as CLIPModel"):
        ColorClassifier(str(tmp_path / "nowhere"), "cpu", "float32")


def test_a_detector_that_lacks_weights_is_refused(mask2former, tmp_path):
    """They would be random, and score."""
    model = Mask2FormerForUniversalSegmentation.from_pretrained(mask2former)
    weights = {key: value for key, value in model.state_dict().items() if "class_predictor" not in key}
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(UserError, match=r"2 tensors are missing there \(class_predictor"):
        load(tmp_path)
    weights = {key: value for key, value in model.state_dict().items() if "empty_weight" not in key}  # a buffer
    model.save_pretrained(tmp_path, state_dict=weights)
    assert load(tmp_path)(pictures())


def test_colours_are_the_nearest_of_mean_embeddings(clip):
    """Against CLIP's own similarities, each sentence and picture taken alone."""
    names = ["computer mouse", "cup", "computer mouse"]
    crops = [Image.fromarray(one.permute(1, 2, 0).numpy()) for one in pictures(3, 40, 56)]
    model, processor = CLIPModel.from_pretrained(clip).eval(), CLIPProcessor.from_pretrained(clip)
    expected = []
    for picture, name in zip(crops, names):
        scores = []
        for color in COLORS:
            texts = [template.format(color=color, name=name) for template in TEMPLATES]
            with torch.no_grad():
                output = model(**processor(text=texts, images=[picture], return_tensors="pt", padding=True))
            scores.append(cosine_similarity(output.text_embeds.mean(0), output.image_embeds[0], dim=0))
        expected.append(COLORS[int(torch.stack(scores).argmax())])
    classify = ColorClassifier(str(clip), "cpu", "float32")
    assert classify(crops, names) == expected
    assert [classify([picture], [name])[0] for picture, name in zip(crops, names)] == expected
    assert set(classify._directions) == {"computer mouse", "cup"}
    assert TEMPLATES[1].format(color="red", name="cup") == "a photo of a red-colored cup"


@pytest.mark.parametrize("size", [(1, 1), (9, 1), (1, 9), (9, 3), (3, 3), (60, 2)])
def test_crops_of_a_few_rows_have_a_colour(clip, size):
    red = Image.new("RGB", size, (255, 0, 0))
    classify = ColorClassifier(str(clip), "cpu", "float32")
    assert classify([red], ["cup"]) == classify([red.resize((40, 40))], ["cup"])


def test_clip_overflow_is_never_red(clip):
    classify = ColorClassifier(str(clip), "cpu", "float32")
    classify._network.visual_projection.weight.data.fill_(float("nan"))
    with pytest.raises(RuntimeError, match="clip of the GenEval reward"):
        classify([Image.new("RGB", (40, 40))], ["cup"])


def test_an_object_is_cropped_on_grey():
    image = torch.arange(3 * 6 * 8).reshape(3, 6, 8).byte()
    mask = torch.zeros(6, 8, dtype=torch.bool)
    mask[2:4, 1:6] = True
    picture = crop(image, (1.0, 1.0, 6.0, 4.0), mask)
    assert picture.size == (5, 3)
    assert {picture.getpixel((x, 0)) for x in range(5)} == {(0x99, 0x99, 0x99)}
    assert picture.getpixel((0, 1)) == tuple(image[:, 2, 1].tolist())


@pytest.mark.parametrize(
    ("box", "size"),
    [
        ((0.4, 0.4, 3.6, 2.6), (4, 3)),
        ((0.5, 1.5, 2.5, 2.5), (2, 1)),
        ((3.1, 3.1, 3.2, 3.2), (1, 1)),
        ((8, 6, 8, 6), (1, 1)),
    ],
)
def test_boxes_are_cropped_at_whole_pixels_and_never_to_nothing(box, size):
    assert crop(torch.zeros(3, 6, 8).byte(), box, None).size == size
