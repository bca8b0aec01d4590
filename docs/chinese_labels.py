"""The pictures of the Chinese pages: run a script, and draw its pictures with Chinese labels.

    python docs/chinese_labels.py docs/figures.py points cost
    python docs/chinese_labels.py examples/pinn_laplace/demo.py --output outputs/demo

Beside every ``name.png`` that the script saves lies a ``name_zh.png``. The script knows nothing of
it. A label that is missing in the tables below is an error. matplotlib needs a Chinese font, for
example WenQuanYi Micro Hei (``apt install fonts-wqy-microhei``) or Noto Sans CJK SC.
"""

# ruff: noqa: RUF001, the commas are Chinese
from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text

from paddlescience_gradnorm.pde.problems import PROBLEMS

FONTS = (
    *("WenQuanYi Micro Hei", "Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC"),
    *("SimHei", "Microsoft YaHei", "PingFang SC"),
)
LABELS = {
    "2 losses, disjoint": "两个损失，配点互不相同",
    "2,000 points, disjoint losses": "2,000 个点，配点互不相同",
    "a problem": "一个问题",
    "conditions x 50": "条件 × 50",
    "geometric mean": "几何平均",
    "inverse norm, as in jaxpi": "范数倒数，与 jaxpi 相同",
    "PINN rule, then ConFIG": "PINN 规则，再 ConFIG",
    "NTK, estimated trace": "NTK，估计的迹",
    "uncertainty (Kendall 2018)": "不确定性加权（Kendall 2018）",
    "GradNorm as published": "论文规则",
    "a hole": "带孔区域",
    "a square": "正方形",
    "absolute error": "绝对误差",
    "all contestants, 2 losses": "所有参与者，两个损失",
    "an L-shape": "L 形区域",
    "acceleration [m/s²]": "加速度 [m/s²]",
    "balanced": "平衡后",
    "cosine of the gradients": "梯度的余弦",
    "cosine of boundary and inner": "boundary 与 inner 的余弦",
    "default: strength 1/3, lead 20": "默认：strength 1/3，lead 20",
    "displacement [m]": "位移 [m]",
    "edge": "边界点",
    "epoch": "训练轮数",
    "equal norms: strength 1, lead 1": "范数相等：strength 1，lead 1",
    "equal weights": "等权重",
    "error after Adam, balanced": "Adam 之后的误差，平衡后",
    "error after Adam, plain": "Adam 之后的误差，直接求和",
    "exact solution": "精确解",
    "exact": "精确解",
    "exact: cos(x) cosh(y)": "精确解：cos(x) cosh(y)",
    "gradient norm, condition / equation": "梯度范数之比，条件 / 方程",
    "hole": "孔边点",
    "how it gets there": "趋于稳定的过程",
    "in time": "含时间的区域",
    "initial": "初始点",
    "inside": "内部点",
    "loss, unweighted": "损失（未加权）",
    "losses": "损失个数",
    "ms a step": "每步毫秒数",
    "network": "网络解",
    "Paddle alone": "仅用 Paddle",
    "periodic": "周期边界点",
    "plain": "直接求和",
    "points": "点数",
    "points of two processes": "两个进程的配点",
    "PINN rule": "PINN 规则",
    "published rule": "论文规则",
    "relative error": "相对误差",
    "relative L2 error": "相对 L2 误差",
    "seconds": "秒",
    "this package, default": "本包，默认规则",
    "this package, default, by SOAP": "本包，默认规则，SOAP 优化器",
    "this package, equal weights": "本包，等权重",
    "this package, default, without C++": "本包，默认规则，不用 C++ 算子",
    "JAX jit, equal weights": "JAX jit，等权重",
    "JAX jit, jaxpi's grad_norm": "JAX jit，jaxpi 的 grad_norm",
    "PyTorch, equal weights": "PyTorch，等权重",
    "PyTorch, gradnorm-pytorch": "PyTorch，gradnorm-pytorch",
    "DeepXDE on PyTorch": "DeepXDE，PyTorch 后端",
    "DeepXDE on Paddle": "DeepXDE，Paddle 后端",
    "PaddleScience, its GradNorm": "PaddleScience 自带的 GradNorm",
    "PaddleScience, this package": "PaddleScience，本包",
    "relative L2 error / that of equal weights": "相对 L2 误差 / 等权重的误差",
    "seeds of equal weights": "等权重的各个种子",
    "sides": "边界点",
    "single tasks": "单任务",
    "step": "训练步",
    "step / plain step": "训练步 / 普通步",
    "task 1, at $R_1 z$": "任务 1，在 R₁z 处",  # beside Chinese no formula is set
    "task 2, at $R_2 z$": "任务 2，在 R₂z 处",
    "strength 1/3, lead 1": "strength 1/3，lead 1",
    "task-normalised test loss at the end": "训练结束时按任务归一化的测试损失",
    "task-normalised test loss": "按任务归一化的测试损失",
    "time [s]": "时间 [s]",
    "time of a step / plain step": "每步时间 / 普通训练步",
    "uncertainty weighting": "不确定性加权",
    "weight of the condition": "条件的权重",
    "weight": "权重",
    "weights that the rule learns": "规则学到的权重",
    "weights": "权重",
    "where it rests": "稳定时的权重",
    "with the operator in C++": "使用 C++ 算子",
    "z, and its descent directions": "z 及其下降方向",
    "z, on the sum of both losses": "z，在两个损失之和上",
}
PATTERNS = {
    r"error, (.*)": r"误差，\1",
    r"([uvp]): \|error\|, (.*)": r"\1：|误差|，\2",
    r"(.*): \|error\| of u": r"\1：u 的 |误差|",
    r"([uvp]), (.*)": r"\1，\2",
    r"(\w+), step (\d+)": r"\1，第 \2 步",
    r"GradNorm, (PINN rule)": r"\1",
    r"w ‖g‖, (.*)": r"w ‖g‖，\1",
    r"norms 1 : (.*)": r"范数 1 : \1",
    r"process (\d)": r"进程 \1",
    r"scale (\d+)": r"尺度 \1",
    r"task (\d)": r"任务 \1",
    r"(\d+): sigma (\d+)": r"\1：σ = \2",
    r"(u|exact)\((t=.*)\)": r"\1，\2",
    r"(Paddle(?: with operators| as installed)?|PyTorch|JAX jit), (.*)": r"\1，\2",
    r"([\d,]+)\npoints": "\\1\n个点",
    r"([\d,]+)\none graph": "\\1\n同一计算图",
}
PARTS = {
    "equal weights": "等权重",
    "plain sum": "直接求和",
    "balanced": "平衡后",
    "network": "网络解",
}
PARTS |= {"Paddle with operators": "Paddle + 算子", "Paddle as installed": "Paddle（默认安装）"}
PARTS |= {"plain step": "普通步", "plain step by nested paddle.grad": "普通步，嵌套 paddle.grad"}
PARTS |= {"PINN rule": "PINN 规则", "GradNorm, malloc settings": "GradNorm，malloc 设置"}
PARTS |= {"GradNorm by get_grad_norm_loss": "GradNorm，用 get_grad_norm_loss"}
PARTS |= {"gradnorm-pytorch, malloc settings": "gradnorm-pytorch，malloc 设置"}
PARTS |= {"GradNorm, weight_lr": "GradNorm，weight_lr"}
PARTS |= {"exact": "精确解", "absolute error": "绝对误差"}
# Names of coordinates, fields, losses, tasks and methods, which programs have too.
NAMES = re.compile(
    r"[xyztuvp]|alpha|T = \d+|\$.*\$|Dirichlet|Neumann"
    r"|pde|boundary|data|inner|clamp|end|left|right|bottom|top|vanilla|GradNorm|SoftAdapt|ReLoBRaLo"
    r"|PECANN-CAPU|max/mean \(Wang 2021\)|DB-PINN \(Zhou 2025\)|ConFIG|DCGD|IMTL-G|PCGrad|UPGrad"
    r"|MGDA|Aligned-MTL|Roto\w+|RotateOnly"
)


def in_chinese(label: str) -> str:
    """The label of a picture, translated.

    Raises:
        KeyError: If it is in none of the tables.
    """
    if label in LABELS:
        return LABELS[label]
    for pattern, translation in PATTERNS.items():
        match = re.fullmatch(pattern, label)
        if match is not None:
            for number, group in enumerate(match.groups(), start=1):
                translation = translation.replace(f"\\{number}", PARTS.get(group, group))
            return translation
    is_done = re.search("[\u3000-\uffef]", label)  # of a figure that is saved twice
    is_name = NAMES.fullmatch(label) or label in PROBLEMS
    if is_done or is_name or not re.search("[A-Za-z]", label):
        return label
    raise KeyError(f"no translation of {label!r}: add it to {__file__}")


def switch_on() -> None:
    """Let every figure that is saved from now on be saved once more, with Chinese labels.

    Raises:
        RuntimeError: If matplotlib has no Chinese font.
    """
    known = {font.name for font in font_manager.fontManager.ttflist}
    fonts = [name for name in FONTS if name in known]
    if not fonts:
        raise RuntimeError(
            f"matplotlib knows none of the Chinese fonts {', '.join(FONTS)}: install one, and "
            f"delete the font list in {matplotlib.get_cachedir()} if it is older than the font"
        )
    matplotlib.rcParams["font.family"] = ["DejaVu Sans", fonts[0]]  # letters, then the rest
    save = Figure.savefig

    def save_in_chinese(figure: Figure, path: Any, **options: Any) -> None:
        save(figure, path, **options)
        names: set[Text] = set()
        for axes in figure.axes:
            for axis in (axes.xaxis, axes.yaxis):
                # Labels of ticks are written anew when the figure is drawn.
                shown = [label.get_text() for label in axis.get_ticklabels()]
                if set(shown) <= set(PROBLEMS):  # one of which is "step"
                    names.update(axis.get_ticklabels())
                    continue
                translated = list(map(in_chinese, shown))
                if translated != shown:
                    axis.set_ticks(axis.get_ticklocs(), translated)
        for text in set(figure.findobj(Text)) - names:
            text.set_text(in_chinese(text.get_text()))
        path = Path(path)
        save(figure, path.with_name(f"{path.stem}_zh{path.suffix}"), **options)

    Figure.savefig = save_in_chinese


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    matplotlib.use("Agg")
    switch_on()
    del sys.argv[0]
    sys.path.insert(0, str(Path(sys.argv[0]).resolve().parent))
    runpy.run_path(sys.argv[0], run_name="__main__")
