from __future__ import annotations

import pytest

from nodes.capability import LEAST, MOST, Weight, bandwidth, correct, usual, weigh

GIB = 1 << 30


@pytest.mark.parametrize(
    ("name", "vram", "gb_s"),
    [
        ("NVIDIA H100 80GB HBM3", 80, 3350),
        ("NVIDIA H100 PCIe", 80, 2000),
        ("NVIDIA H100 NVL", 94, 3900),
        ("NVIDIA H200", 141, 4800),
        ("NVIDIA A100-SXM4-80GB", 80, 2039),
        ("NVIDIA A100-SXM4-40GB", 40, 1555),
        ("NVIDIA A100-PCIE-40GB", 40, 1555),
        ("NVIDIA A100 80GB PCIe", 80, 1935),
        ("Tesla V100-SXM2-16GB", 16, 900),
        ("Tesla T4", 15, 300),
        ("NVIDIA L40S", 45, 864),
        ("NVIDIA L4", 23, 300),
        ("NVIDIA RTX A6000", 48, 768),
        ("NVIDIA RTX 6000 Ada Generation", 48, 960),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 96, 1792),
        ("Quadro RTX 6000", 24, 672),
        ("NVIDIA GeForce RTX 5090", 32, 1792),
        ("NVIDIA GeForce RTX 4090", 24, 1008),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 16, 604.8),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", 16, 672),
        ("NVIDIA GeForce RTX 3090", 24, 936),
        ("AMD Instinct MI300X", 192, 5300),
    ],
)
def test_names_as_drivers_tell_them_are_known(name, vram, gb_s):
    assert bandwidth(name, vram * GIB) == (pytest.approx(gb_s), True)


@pytest.mark.parametrize(("gib", "gb_s"), [(192, 2000), (48, 800), (24, 700), (16, 450), (8, 300), (2, 200)])
def test_an_unknown_card_is_judged_by_its_size(gib, gb_s):
    assert bandwidth("Futura X1", gib * GIB) == (gb_s, False)


def test_of_a_card_that_nothing_is_known_of_the_weight_is_neutral():
    assert bandwidth("", 0) == (1000.0, False)


def test_a_nodes_weight_is_the_sum_over_its_gpus():
    assert weigh([("NVIDIA L40S", 45 * GIB)] * 2, {}) == Weight(1.728, "2 x NVIDIA L40S")
    assert weigh([("NVIDIA L4", 23 * GIB)], {"rack": "7"}) == Weight(0.3, "NVIDIA L4")
    assert weigh([("Futura X1", 24 * GIB)], {}) == Weight(0.7, "Futura X1, by VRAM")
    assert weigh([], {}) == Weight(0.1, "CPU")


@pytest.mark.parametrize(
    ("label", "weight"), [("2", 2.0), ("0.5", 0.5), (" 3 ", 3.0), ("1e9", MOST), ("1e-9", LEAST)]
)
def test_a_label_overrides_the_table(label, weight):
    assert weigh([("Tesla T4", 15 * GIB)], {"weight": label}) == Weight(weight, "label")


@pytest.mark.parametrize("label", ["", "heavy", "0", "-1", "nan", "inf"])
def test_a_label_that_is_no_positive_number_is_passed_over(label):
    assert weigh([], {"weight": label}).source == "CPU"


# -- what was measured ---------------------------------------------------------------------------------

L4, L40S = Weight(0.3, "L4"), Weight(0.864, "L40S")


def corrected(nodes):
    """The weights of nodes that serve one model, each given with its speed."""
    norm = usual((w.value, w.source, speed) for w, speed in nodes)
    return [correct(w, speed, norm) for w, speed in nodes]


def values(*nodes):
    return [w.value for w in corrected(nodes)]


def test_nodes_that_do_as_their_class_predicts_keep_their_weights():
    assert corrected([(L4, 30.0), (L4, 30.6), (L40S, 86.4)]) == [L4, L4, L40S]


def test_a_node_slower_than_its_class_next_to_the_others_weighs_less():
    slow, *others = corrected([(L40S, 60.5), (L40S, 86.4), (L4, 30.0)])
    assert slow == Weight(0.605, "L40S, measured x0.70")
    assert others == [L40S, L4]


def test_a_correction_is_bounded_both_ways():
    assert values((L4, 1.0), (L4, 30.0), (L4, 30.0)) == [0.15, 0.3, 0.3]
    assert values((L4, 900.0), (L4, 30.0), (L4, 30.0)) == [0.6, 0.3, 0.3]


def test_what_is_not_measured_or_measured_alone_stays():
    assert values((L4, 0.0), (L4, 30.0), (L40S, 0.0)) == [0.3, 0.3, 0.864]
    assert values() == []


def test_a_label_stands_and_does_not_judge_others():
    told = Weight(2.0, "label")
    assert values((told, 1000.0), (L4, 30.0), (L4, 30.0)) == [2.0, 0.3, 0.3]
    assert values((told, 1.0), (L4, 30.0)) == [2.0, 0.3]
