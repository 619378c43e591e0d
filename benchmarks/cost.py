"""What a million clips of 10 s cost: ``python cost.py [--clips 1000000] [--rounds 4]``.

Measured here, in processor time of one core, which other programs change little: decoding a clip, and computing it
with the models that are asked for, in batches of 4. All else is arithmetic from that, from the operations that a clip
takes, and from the published speed of a GPU. Prices are those of the options.
"""

import argparse
import io
import os
import time

import av
import numpy as np
import soundfile
import torch

import torchbeats
from torchbeats import BEATs, BEATsConfig, audio
from torchbeats.config import SIZES

SECONDS, RATE, BATCH = 10, 44_100, 4
H200_TFLOPS = 989  # bfloat16, dense, as NVIDIA publishes it
UTILISATION = 0.3  # of that, which is what the arithmetic assumes


def sound(kind):
    """A clip as a file, and its bytes."""
    random = np.random.default_rng(0)
    samples = 0.1 * np.cumsum(random.normal(0, 0.02, (SECONDS * RATE, 2)), axis=0) % 0.5
    file = io.BytesIO()
    if kind == "MP3":
        with av.open(file, "w", format="mp3") as container:
            stream = container.add_stream("mp3", rate=RATE, layout="stereo")
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T, np.float32), "fltp", "stereo")
            frame.sample_rate = RATE
            for packet in [*stream.encode(frame), *stream.encode(None)]:
                container.mux(packet)
    else:
        soundfile.write(file, samples, RATE, format=kind, subtype="PCM_16")
    return file.getvalue()


def decoding(content, rounds):
    """Processor seconds of a clip."""

    def once():
        file = io.BytesIO(content)
        file.name = "clip"
        return audio.excerpt(file, 0, SECONDS)

    once()
    begun = time.process_time()
    for _ in range(rounds):
        once()
    return (time.process_time() - begun) / rounds


@torch.inference_mode()
def computing(model, rounds):
    """Processor seconds of a clip."""
    wav = 0.1 * torch.randn(BATCH, SECONDS * 16_000)
    model.compute("mean", wav, None)
    begun = time.process_time()
    for _ in range(rounds):
        model.compute("mean", wav, None)
    return (time.process_time() - begun) / rounds / BATCH


def operations(cfg):
    """Floating-point operations of a clip: two for each weight that meets a patch, and attention's products."""
    patches, width = 8 * (SECONDS * 100 // 16), cfg.encoder_embed_dim
    weights = cfg.encoder_layers * (4 * width**2 + 2 * width * cfg.encoder_ffn_embed_dim)
    weights += width**2 // cfg.conv_pos_groups * cfg.conv_pos
    return 2 * patches * weights + 4 * cfg.encoder_layers * patches**2 * width


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--sizes", nargs="*", default=["nano", "base"])
    parser.add_argument("--core-price", type=float, default=0.05, help="of a core, an hour")
    parser.add_argument("--gpu-price", type=float, default=4.0, help="of an H200 with 16 cores, an hour")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    clips = arguments.clips
    slowest = 0.0
    for kind in ("WAV", "FLAC", "MP3"):
        content = sound(kind)
        seconds = decoding(content, 5 * arguments.rounds)
        slowest = max(slowest, seconds)
        print(
            f"{kind}: {len(content) / 1e6:.2f} MB a clip, decoding {1000 * seconds:.1f} ms; "
            f"all {seconds * clips / 3600:,.1f} core hours, {clips * len(content) / 1e12:.2f} TB",
            flush=True,
        )
    for size in arguments.sizes:
        model = torchbeats.load("beats-nano") if size == "nano" else BEATs(BEATsConfig(SIZES[size])).eval()
        seconds, each = computing(model, arguments.rounds), operations(model.cfg)
        hours = (seconds + slowest) * clips / 3600
        gpu = each / (UTILISATION * H200_TFLOPS * 1e12)
        price = hours * arguments.core_price
        print(
            f"{size}: {each / 1e9:.0f} GFLOP a clip; a core {1000 * seconds:.0f} ms, {SECONDS / seconds:.1f} x real "
            f"time; with decoding {hours:,.0f} core hours in all, {price:,.0f} at {arguments.core_price} an hour",
            flush=True,
        )
        for gpus in (1, 16):
            compute, decode = gpu * clips / gpus / 3600, slowest * clips / (16 * gpus) / 3600
            wall = max(compute, decode)
            price = wall * gpus * arguments.gpu_price
            print(
                f"  {gpus} H200, 16 cores each: computing {60 * compute:.1f} min, decoding the slowest "
                f"{60 * decode:.1f} min; {price:,.1f} at {arguments.gpu_price} an hour"
            )
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
