"""Run in a process of its own: what summaries take of the resident memory, beside what was counted. Prints JSON rows."""

import gc
import json
import sys
from pathlib import Path

import torch
import torch._dynamo  # torch 2.14 loads it at the first vjp of torch.func: no part of a sweep
import torch.nn.functional as F
from torch import nn

import gnewton as gn
from gnewton.derivatives import memory
from gnewton.derivatives.record import record


class Block(nn.Module):
    """Attention and a perceptron with their residual sums, and a head over many words."""

    def __init__(self, n=128, heads=4, words=4000):
        super().__init__()
        self.words, self.heads = nn.Embedding(words, n), heads
        self.mix, self.out = nn.Linear(n, 3 * n), nn.Linear(n, n)
        self.up, self.down = nn.Linear(n, 4 * n), nn.Linear(4 * n, n)
        self.norms = nn.ModuleList([nn.LayerNorm(n) for _ in range(3)])

    def forward(self, x):
        h = self.words(x)
        b, t, n = h.shape
        q, k, v = (
            part.reshape(b, t, self.heads, -1).transpose(1, 2) for part in self.mix(self.norms[0](h)).chunk(3, -1)
        )
        a = (q @ k.transpose(-1, -2) / (n / self.heads) ** 0.5).softmax(-1) @ v
        h = h + self.out(a.transpose(1, 2).reshape(b, t, n))
        h = h + self.down(F.gelu(self.up(self.norms[1](h))))
        return self.norms[2](h) @ self.words.weight.T


class Gate(nn.Module):
    """A recurrent cell, which is one operation for the tape, by the generic rule or another."""

    def __init__(self):
        super().__init__()
        self.cell, self.out = nn.GRUCell(64, 256), nn.Linear(256, 10)

    def forward(self, x):
        h = x.new_zeros(len(x), 256)
        for _ in range(3):
            h = self.cell(x, h)
        return self.out(h)


def networks():
    torch.manual_seed(0)
    words = torch.randint(0, 4000, (2, 64))
    images, labels = torch.randn(16, 3, 32, 32), torch.randint(0, 10, (16,))
    convolutional = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ELU(), nn.MaxPool2d(2), nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32),
        nn.Tanh(), nn.Flatten(), nn.Linear(32 * 256, 10),
    )  # fmt: skip
    layers = [nn.Linear(512, 512) if i % 2 == 0 else nn.Tanh() for i in range(8)]
    yield "perceptron", nn.Sequential(*layers), torch.randn(256, 512), torch.randint(0, 512, (256,))
    yield "convolutions", convolutional, images, labels
    yield "transformer", Block(), words, words.flatten()
    yield "recurrent", Gate(), torch.randn(256, 64), torch.randint(0, 10, (256,))


def reset_peak():
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def rise(function):
    before = reset_peak()
    function()
    return peak() - before


def main():
    for name, model, x, y in networks():
        partition = gn.Partition.by_tensor(model)

        def loss(model=model, x=x, y=y):
            return F.cross_entropy(model(x).flatten(0, -2), y)

        u = gn.direction.gradient(loss, partition)
        gn.summarize(loss, partition, u)  # what is loaded at the first use
        gradient = rise(lambda loss=loss, partition=partition: gn.direction.gradient(loss, partition))
        for order, full in ((2, False), (3, False), (3, True)):
            if full and name == "recurrent":
                continue  # the graphs that the generic rule keeps are counted, roughly: no bound is promised
            counted = memory.peak(record(loss, partition), partition, order, full)
            options = {"order": order, "full_third": full, "max_memory": 0.6 * counted}
            took = rise(lambda o=options, a=(loss, partition, u): gn.summarize(*a, engine="tape", **o))
            sys.stdout.write(json.dumps({"network": name, **options, "took": took, "gradient": gradient}) + "\n")
            sys.stdout.flush()


main()
