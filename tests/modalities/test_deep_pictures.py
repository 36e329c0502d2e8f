"""Pictures as they are published: more than 8 bits a pixel, odd metadata, very long."""

import io
import struct
import time
import zlib

import numpy as np
import pytest
import torch
from open_clip.transform import image_transform
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from timm.data import create_transform

import mmzoo
from mmzoo.errors import BadImage
from mmzoo.modalities.image import BoundedTransform, open_image
from mmzoo.models.trainable import allow_single_values
from mmzoo.testing import tiny
from mmzoo_open_clip.encoder import OpenCLIP, OpenCLIPOptions, OpenCLIPTransform
from mmzoo_timm.encoder import Timm, TimmOptions, TimmTransform
from mmzoo_transformers.vision import PlainTransform, ProcessorTransform, processor_of

DEEP = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)  # 257 times 0-255
GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)
HEIGHTS = np.linspace(-120, 3000, 256, dtype=np.float32).reshape(16, 16)


def saved(image, kind, **options):
    data = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(data, kind, **options)
    return data.getvalue()


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_chunk(data, *chunks):
    """A PNG file with ``chunks`` before its pixels."""
    at = data.index(b"IDAT") - 4
    return data[:at] + b"".join(chunks) + data[at:]


def grey(source):
    """The pixels of a grey picture."""
    pixels = np.asarray(open_image(source))
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


def tagged(pixels, bits, **tags):
    """A TIFF file of one strip: unsigned integers in ``pixels``, already packed."""
    entries = {256: (4, 2), 257: (4, 1), 258: (3, bits), 259: (3, 1), 262: (3, tags.get("photometric", 1)), 273: (4, 200)}
    entries |= {277: (3, 1), 278: (4, 1), 279: (4, len(pixels)), 339: (3, tags.get("format", 1))}
    ifd = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", k, t, 1, v) for k, (t, v) in sorted(entries.items()))
    return (b"II*\0" + struct.pack("<I", 8) + ifd + bytes(4)).ljust(200, b"\0") + pixels


def cases(names, by_name):
    return pytest.mark.parametrize(names, by_name.values(), ids=by_name.keys())


class TestDepth:
    @cases(
        ("source", "expected"),
        {
            "16-bit PNG": (saved(DEEP, "PNG"), GREY),
            "16-bit TIFF": (saved(DEEP, "TIFF"), GREY),
            "16-bit TIFF, the other byte order": (saved(DEEP.astype(">u2"), "TIFF"), GREY),
            "16-bit PGM": (saved(DEEP, "PPM"), GREY),
            "16-bit PGM, dark": (saved(DEEP // 300, "PPM"), np.round(DEEP // 300 / 257)),
            "I;16B": (Image.frombytes("I;16B", (16, 16), DEEP.astype(">u2").tobytes()), GREY),
            "I;16L": (Image.frombytes("I;16L", (16, 16), DEEP.astype("<u2").tobytes()), GREY),
            "12-bit TIFF": (tagged(bytes([0xFF, 0xF8, 0x00]), 12), [[255, 128]]),
            "16-bit TIFF, white is zero": (tagged(struct.pack("<HH", 0, 65535), 16, photometric=0), [[255, 0]]),
            "unsigned 32-bit TIFF": (tagged(struct.pack("<II", 7, 2**32 - 1), 32), [[0, 255]]),
            "signed 16-bit TIFF": (tagged(struct.pack("<hh", -500, 500), 16, format=2), [[0, 255]]),
            "signed 8-bit TIFF": (tagged(struct.pack("<bb", -128, 127), 8, format=2), [[0, 255]]),
            "signed 8-bit TIFF in 0-127": (tagged(struct.pack("<bb", 0, 127), 8, format=2), [[0, 127]]),
            "int32 TIFF": (saved(DEEP.astype(np.int32) * 1000, "TIFF"), GREY),
            "int32 TIFF, negative": (saved(GREY.astype(np.int32) * 10 - 9000, "TIFF"), GREY),
            "int32 TIFF in 0-255": (saved(GREY[:8].astype(np.int32), "TIFF"), GREY[:8]),
            "float TIFF in 0-1": (saved(GREY[:8].astype(np.float32) / 255, "TIFF"), GREY[:8]),
            "float TIFF in 0-255": (saved(GREY[:8].astype(np.float32), "TIFF"), GREY[:8]),
            "float TIFF in 0-65535": (saved(DEEP.astype(np.float32), "TIFF"), GREY),
            "float TIFF of heights": (saved(HEIGHTS, "TIFF"), np.round((HEIGHTS + 120) / 3120 * 255)),
            "not finite": (Image.fromarray(np.array([[np.nan, -np.inf, 2, 400, np.inf]], np.float32)), [[0, 0, 0, 255, 255]]),
            "one value": (saved(np.full((2, 2), 7e6, np.float32), "TIFF"), [[128, 128], [128, 128]]),
            "no heights at sea": (
                saved(np.array([[-9999, 20, 3000]], np.float32), "TIFF", tiffinfo={42113: "-9999"}),
                [[0, 0, 255]],
            ),
            "uint16 array": (DEEP, GREY),
            "uint16 tensor": (torch.from_numpy(DEEP), GREY),
            "16-bit colours": (np.stack([DEEP] * 3, -1), GREY),
            "bfloat16 tensor": (torch.tensor([[0.0, 0.5, 1.0]], dtype=torch.bfloat16), [[0, 128, 255]]),
            "float16 array": (np.array([[0, 0.2, 1]], np.float16), [[0, 51, 255]]),
            "1 bit": (Image.fromarray(np.eye(2, dtype=bool)), [[255, 0], [0, 255]]),
        },
    )
    def test_scaled_by_its_range(self, source, expected):
        assert np.array_equal(grey(source), expected)

    def test_nothing_but_nan_is_no_picture(self):
        with pytest.raises(BadImage, match="none of its pixels is a number"):
            open_image(Image.fromarray(np.full((2, 2), np.nan, np.float32)))
        with pytest.raises(BadImage, match="give pixels of 16 bits as uint16"):
            open_image(DEEP.astype(np.int64))

    @cases(
        ("pixels", "value"),
        {
            "16 bits": (np.array([[257, 514, 65535]], np.uint16), 514),
            "8 bits": (np.array([[1, 2, 255]], np.uint8), 2),
        },
    )
    def test_a_transparent_grey_is_white(self, pixels, value):
        data = with_chunk(saved(pixels, "PNG"), chunk(b"tRNS", struct.pack(">H", value)))
        assert grey(data).tolist() == [[1, 255, 255]]

    def test_transparent_values_of_other_depths(self):
        head = b"\x89PNG\r\n\x1a\n"

        def png(depth, colour, row, trns):
            size = struct.pack(">IIBBBBB", 2, 1, depth, colour, 0, 0, 0)
            chunks = [(b"IHDR", size), (b"tRNS", trns), (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")]
            return head + b"".join(chunk(*each) for each in chunks)

        assert grey(png(2, 0, bytes([0b01100000]), b"\0\2")).tolist() == [[85, 255]]
        assert grey(png(4, 0, bytes([0x37]), b"\0\7")).tolist() == [[51, 255]]
        assert grey(png(1, 0, bytes([0b00000000]), b"\0\0")).tolist() == [[255, 255]]
        colours = struct.pack(">6H", 0x1122, 0x3344, 0x5566, 0x7788, 0x99AA, 0xBBCC)
        assert np.asarray(open_image(png(16, 2, colours, colours[6:]))).tolist() == [[[0x11, 0x33, 0x55], [255] * 3]]

    def test_transparency_of_every_mode(self):
        clear, solid = (0, 0, 0, 0), (10, 20, 30, 255)
        rgba = Image.new("RGBA", (2, 1), clear)
        rgba.putpixel((1, 0), solid)
        expected = [[[255] * 3, [10, 20, 30]]]
        assert np.asarray(open_image(rgba)).tolist() == expected
        assert np.asarray(open_image(rgba.convert("RGBa"))).tolist() == expected
        la = Image.frombytes("LA", (2, 1), bytes([9, 0, 10, 255]))
        assert grey(la).tolist() == grey(Image.frombytes("La", (2, 1), bytes([0, 0, 10, 255]))).tolist() == [[255, 10]]
        palette = Image.frombytes("P", (3, 1), bytes([0, 1, 2]))
        palette.putpalette([0, 0, 0, 10, 10, 10, 20, 20, 20])
        assert grey(saved(palette, "PNG", transparency=b"\0\xff\xff")).tolist() == [[255, 10, 20]]
        assert grey(saved(palette, "GIF", transparency=1)).tolist() == [[0, 255, 20]]
        assert grey(palette.convert("PA")).tolist() == [[0, 10, 20]]

    @pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB", "HSV", "RGBX"])
    def test_other_colour_spaces(self, mode):
        image = Image.new("RGB", (2, 2), (200, 120, 40))
        pixels = np.asarray(open_image(image.convert(mode)), np.int32)
        assert np.abs(pixels - [200, 120, 40]).max() <= 3

    def test_the_first_of_several_frames(self):
        frames = [Image.fromarray(DEEP), Image.fromarray(DEEP[::-1])]
        assert np.array_equal(grey(saved(frames[0], "TIFF", save_all=True, append_images=frames[1:])), GREY)


class TestMetadata:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)

    def exif(self, **tags):
        exif = Image.Exif()
        for tag, value in tags.items():
            exif[int(tag[1:])] = value
        return exif

    def test_a_tag_that_cannot_be_written_back(self):
        # Of type LONG with a negative value: read as a signed one, and refused by the writer.
        ifd = struct.pack("<H", 2) + struct.pack("<HHII", 0x0112, 3, 1, 6) + struct.pack("<HHIi", 0x9999, 9, 1, -5) + bytes(4)
        turned = np.rot90(self.pixels, -1)
        for content in (b"II*\0\x08\0\0\0" + ifd, b"II*\0\x08\0\0\0" + ifd[:30], b"II*\0\x08\0\0\0" + ifd + b"\xff" * 9):
            data = with_chunk(saved(self.pixels, "PNG"), chunk(b"eXIf", content))
            assert np.array_equal(np.asarray(open_image(data)), turned)

    @pytest.mark.parametrize("place", ["before", "after"])
    @cases(
        "damaged",
        {
            "an eXIf chunk with a wrong checksum": chunk(b"eXIf", b"II*\0\x08\0\0\0")[:-1] + b"?",
            "an eXIf chunk of nothing": chunk(b"eXIf", b"nothing"),
            "an unknown compression": chunk(b"iCCP", b"icc\0\7abc"),
            "a profile that is a bomb": chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(1 << 22))),
            "a text that is a bomb": chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(1 << 22))),
            "a text called transparency": chunk(b"tEXt", b"transparency\0none"),
            "a text called exif": chunk(b"tEXt", b"exif\0none"),
            "a profile that is no hexadecimal": chunk(b"tEXt", b"Raw profile type exif\0\nexif\n  4\nzz"),
            "a short resolution": chunk(b"pHYs", b"\0"),
            "a short gamma": chunk(b"gAMA", b"\0"),
            "a short transparency": chunk(b"tRNS", b"\0"),
            "XMP with garbage": chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0\xff\xfetiff:Orientation="9'),
        },
    )
    def test_a_damaged_chunk(self, damaged, place):
        data = saved(self.pixels, "PNG")
        data = with_chunk(data, damaged) if place == "before" else data[:-12] + damaged + data[-12:]
        assert np.array_equal(np.asarray(open_image(data)), self.pixels)

    def test_the_orientation_beside_a_damaged_chunk(self):
        good = chunk(b"eXIf", self.exif(_274=8).tobytes()[6:])
        data = with_chunk(saved(self.pixels, "PNG"), good, chunk(b"iCCP", b"icc\0\7abc"))
        assert np.array_equal(np.asarray(open_image(data)), np.rot90(self.pixels))

    @pytest.mark.parametrize("value", [0, 9, 65535])
    def test_an_orientation_that_does_not_exist(self, value):
        assert open_image(saved(self.pixels, "JPEG", exif=self.exif(_274=value))).size == (6, 4)

    def test_jpeg(self):
        plain = saved(self.pixels, "JPEG", exif=self.exif(_274=6))
        turned = np.asarray(open_image(plain))
        assert turned.shape == (6, 4, 3)

        def with_segment(marker, content):
            return plain[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content + plain[2:]

        for marker, content in (
            (0xE0, b"JFIF\0"),
            (0xE2, b"MPF\0II*\0\x08\0\0\0\xff\xff" + b"\xff" * 40),
            (0xE2, b"ICC_PROFILE\0\0"),
            (0xE2, b"ICC_PROFILE\0"),
            (0xED, b"Photoshop 3.0\x008BIM"),
            (0xEE, b"Adobe"),
            (0xFE, b"\xff\xfe\0"),
        ):
            assert np.array_equal(np.asarray(open_image(with_segment(marker, content))), turned), content

    @pytest.mark.filterwarnings("ignore")
    def test_tiff(self):
        data = saved(self.pixels, "TIFF", tiffinfo={274: 6, 305: "program", 34665: 1 << 30})
        assert np.array_equal(np.asarray(open_image(data)), np.rot90(self.pixels, -1))

    def test_pixels_that_are_damaged_are_no_picture(self):
        data = bytearray(saved(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8), "PNG"))
        at = data.index(b"IDAT") + 4000
        data[at : at + 50] = bytes(50)
        with pytest.raises(BadImage, match="cannot be read"):
            open_image(bytes(data))

    def test_a_picture_that_was_turned_stays_so(self):
        once = open_image(saved(self.pixels, "JPEG", exif=self.exif(_274=6)))
        assert open_image(once).size == once.size == (4, 6)

    def test_text_in_a_picture(self):
        info = PngInfo()
        info.add_text("parameters", "x" * 3_000_000, zip=True)
        assert np.array_equal(np.asarray(open_image(saved(Image.fromarray(self.pixels), "PNG", pnginfo=info))), self.pixels)


def transforms():
    square = {"height": 32, "width": 32}
    processors = {
        "crop": {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32}, "crop_size": square},
        "squash": {"image_processor_type": "ViTImageProcessor", "size": square},
        "convnext": {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 32}, "crop_pct": 0.875},
        "pad": {
            "image_processor_type": "LlavaImageProcessor",
            "do_pad": True,
            "size": {"shortest_edge": 32},
            "crop_size": square,
        },
    }
    named = {name: lambda data=data: ProcessorTransform(processor_of(data)) for name, data in processors.items()}
    tower = {"image_size": 32, "layers": 1, "width": 16, "patch_size": 8, "head_width": 16}
    named["plain"] = lambda: PlainTransform(32, 32)
    named["timm"] = lambda: Timm(TimmOptions(variant="test_vit", image_size=64)).transform
    for mode in ("squash", "border"):
        named[f"timm, {mode}"] = lambda mode=mode: TimmTransform(create_transform((3, 32, 32), crop_mode=mode))
    for mode in ("squash", "longest"):
        named[f"open_clip, {mode}"] = lambda mode=mode: OpenCLIPTransform(image_transform(32, is_train=False, resize_mode=mode))
    named["open_clip"] = lambda: OpenCLIP(OpenCLIPOptions(config={"embed_dim": 8, "vision_cfg": tower})).transform
    return named


class TestLong:
    @pytest.mark.parametrize("name", transforms())
    def test_work_is_bounded_and_ordinary_pictures_are_as_before(self, name):
        transform = transforms()[name]()
        bounded = BoundedTransform(transform)
        random = np.random.default_rng(0)
        for size in ((1, 1), (40, 30), (30, 40), (480, 30), (3, 48)):
            image = Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8))
            assert torch.equal(bounded(image), transform(image))
        shape = transform(image).shape
        for size in ((60000, 1), (1, 60000), (20000, 3), (17, 1)):
            image = Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8))
            started = time.perf_counter()
            pixels = bounded(image)
            assert time.perf_counter() - started < 2
            assert pixels.shape == shape
            assert pixels.isfinite().all()

    def test_the_same_part_is_kept(self):
        ramp = np.linspace(0, 255, 3200).astype(np.uint8)
        image = Image.fromarray(np.broadcast_to(ramp[:, None, None], (3200, 32, 3)).copy())
        transform = PlainTransform(32, 32)
        assert torch.allclose(BoundedTransform(transform)(image), transform(image), atol=0.01)
        squash = ProcessorTransform(
            processor_of({"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}})
        )
        assert torch.allclose(BoundedTransform(squash)(image), squash(image), atol=0.02)

    @pytest.mark.parametrize("fusion", [{}, {"use": "projector", "tiles": 2}], ids=["plain", "tiles"])
    def test_a_model_predicts_from_it(self, fusion):
        part = {"use": "timm", "variant": "test_vit", "image_size": 64, "pretrained": False}
        model = mmzoo.build(small(part, **fusion), seed=0)
        for size in ((60000, 1), (1, 60000), (1, 1)):
            assert model.predict(Image.new("RGB", size), "what is it?").label is not None


def small(encoder, **fusion):
    made = tiny(mmzoo.Recipe(encoder="cnn", fusion={"use": "prefix-mlp", **fusion}, language_model="gpt-mini", task="vqa"))
    return mmzoo.Recipe(**{**made.to_dict(), "encoders": {"image": encoder}})


class Given(mmzoo.Dataset):
    def __init__(self, examples):
        super().__init__(None)
        self.examples = examples

    def splits(self):
        return ["train"]

    def load(self, split):
        return self.examples


class TestOnePicture:
    @pytest.mark.parametrize("variant", ["test_resnet", "test_efficientnet"])
    def test_a_batch_of_one_trains_through_batch_norm(self, variant, tmp_path, quick):
        recipe = small({"use": "timm", "variant": variant, "image_size": 32, "pretrained": False, "train": "full"})
        data = [mmzoo.Example(str(i), Image.new("RGB", (32, 32), (40 * i, 9, 9)), "what", ("red",)) for i in range(5)]
        run = mmzoo.train(
            recipe, dataset=Given(data), output=tmp_path / "model", progress=False, training={**quick, "batch_size": 4}
        )
        assert run.steps == 4  # each second batch has one picture

    def test_only_a_single_value_uses_the_running_statistics(self):
        part = {"use": "timm", "variant": "test_resnet", "image_size": 32, "pretrained": False, "train": "full"}
        model = mmzoo.build(small(part), seed=0)
        plain = Timm(TimmOptions(variant="test_resnet", image_size=32))
        plain.load_state_dict(model.encoder.state_dict())
        pictures = torch.randn(3, 3, 32, 32)
        norms = [module for module in model.encoder.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        for inputs in (pictures, pictures[:1].repeat(1, 1, 2, 2)):
            assert torch.equal(model.encoder.train()(inputs).tokens, plain.train()(inputs).tokens)
            assert all(torch.equal(a, b) for a, b in zip(model.encoder.buffers(), plain.buffers(), strict=True))
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            plain(pictures[:1])
        last = norms[-1].running_mean.clone()
        model.encoder(pictures[:1]).pooled.sum().backward()
        assert torch.equal(norms[-1].running_mean, last)
        assert all(norm.training for norm in norms)
        assert all(parameter.grad.isfinite().all() for parameter in model.encoder.parameters() if parameter.grad is not None)

    def test_a_vector_of_one_example(self):
        norms = torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.BatchNorm1d(4, track_running_stats=False)).train()
        allow_single_values(norms)
        vector = torch.randn(1, 4)
        assert torch.allclose(norms[0](vector), vector, atol=1e-4)  # the statistics are those of the start: mean 0, variance 1
        assert norms[0].training
        with pytest.raises(ValueError, match="more than 1 value per channel"):  # it has no other statistics
            norms[1](vector)

    def test_group_norm_of_one_pixel_depends_on_the_picture(self):
        model = mmzoo.build(small({"use": "cnn", "image_size": 8, "channels": [8, 8, 8]}), seed=0)
        black, white = (model.encode(model.input_pipeline().open(Image.new("RGB", (8, 8), c))[None]) for c in ("black", "white"))
        assert not torch.allclose(black.pooled, white.pooled)
