"""The guards of a kernel.py: one quick test of all arguments, and the error that explains it."""

from __future__ import annotations

from superopt.emit.code import text
from superopt.emit.locals import Locals, indented, tuple_text
from superopt.mugraph.dtypes import DTYPES
from superopt.mugraph.expr import Tensor, is_const

REFUSE = '''
def _refuse(*tensors: torch.Tensor) -> None:
    """Raise the error that says which argument this kernel was not made for."""
    sizes: dict[str, int] = {}
    for (name, (dtype, shape)), tensor in zip(SIGNATURE.items(), tensors):
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name}: got {type(tensor).__name__}, made for a {dtype} tensor")
        if tensor.dtype != dtype:
            raise TypeError(f"{name}: got {tensor.dtype}, made for {dtype}")
        if tensor.device.type not in ("cuda", "cpu") or tensor.device != tensors[0].device:
            raise ValueError(f"{name}: is on {tensor.device}, made for one cuda device, or the cpu")
        if tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{name} requires a gradient; this kernel computes forward only")
        made = f"made for ({', '.join(map(str, shape))})"
        if tensor.dim() != len(shape):
            raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, {made}")
        for got, want in zip(tensor.shape, shape):
            if isinstance(want, str) and want.isidentifier():
                want = sizes.setdefault(want, got)
            elif isinstance(want, str):
                want = eval(want, {}, sizes)
            if got != want:
                raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, {made} with {sizes}")
    for symbol, size in sizes.items():
        low, high = RANGES[symbol]
        if not low <= size <= high:
            raise ValueError(f"{symbol} is {size}, made for {low} to {high}")
    raise ValueError("an argument spans 2**31 elements or more: pass it contiguous")
'''

MODES = '''
PLAIN = {torch.Tensor, torch.nn.Parameter}


def _modes_record() -> bool:
    """Whether one of torch's own modes is on (fake tensors, make_fx): users' modes only watch."""
    modes = torch.utils._python_dispatch._get_current_dispatch_mode_stack()
    return any(getattr(m, "_mode_key", None) is not None for m in modes)
'''

SPAN = '''
def _span(tensor: torch.Tensor) -> int:
    """The largest offset of an element, in elements."""
    return sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride()))
'''


def signature_table(names: Locals) -> str:
    """What each argument must be, as data that the error messages are made from."""
    rows = []
    for t in names.arguments:
        shape = [str(e.attr) if is_const(e) else repr(text(names.extent(e))) for e in t.shape]
        rows.append(f'    "{names[t]}": (torch.{DTYPES[t.dtype].torch}, {tuple_text(shape)}),')
    ranges = ", ".join(f'"{names[s]}": ({s.low}, {s.high})' for s in names.symbols)
    return "\n".join(
        [
            "# argument -> its element type and shape; symbol -> its least and largest size",
            "SIGNATURE = {",
            *rows,
            "}",
            f"RANGES: dict[str, tuple[int, int]] = {{{ranges}}}",
        ]
    )


def fits(names: Locals, narrow: set[Tensor]) -> str:
    """The function that says, in a microsecond or two, whether a call is one it was made for.

    Offsets into `narrow` tensors are 32 bits: a sliced argument must not reach beyond.
    """
    arguments = [names[t] for t in names.arguments]
    conditions = [f"{s.low} <= {names[s]} <= {s.high}" for s in names.symbols]
    kinds: dict[str, list[str]] = {}
    for t in names.arguments:
        kinds.setdefault(DTYPES[t.dtype].torch, []).append(f"{names[t]}.dtype")
    conditions += [f"{' == '.join(group)} == torch.{kind}" for kind, group in kinds.items()]
    conditions += [f"{names[t]}.shape == {names.shape(t)}" for t in names.arguments]
    conditions.append(f'{arguments[0]}.device.type in ("cuda", "cpu")')
    if len(arguments) > 1:
        conditions.append(" == ".join(f"{n}.device" for n in arguments))
    needed = " or ".join(f"{n}.requires_grad" for n in arguments)
    conditions.append(f"not (({needed}) and torch.is_grad_enabled())")
    conditions += [
        f"({names[t]}.is_contiguous() or _span({names[t]}) < 2**31)"
        for t in names.arguments
        if t in narrow and t.shape
    ]
    body = names.with_symbols([f"return bool({' and '.join(conditions)})"])
    return "\n".join(
        [
            f"def _fits({names.signature()}) -> bool:",
            "    try:",
            indented(body, 2),
            "    except (AttributeError, IndexError):  # no tensor, or one of too few dimensions",
            "        return False",
        ]
    )


def traced(names: Locals) -> str:
    """The function that says whether a call must go through the registered operator."""
    plain = " and ".join(f"type({names[t]}) in PLAIN" for t in names.arguments)
    lines = [
        '"""Whether the call is recorded, not run: compile, export, functorch, subclasses."""',
        "return (",
        "    torch.compiler.is_compiling()",
        f"    or not ({plain})",
        "    or torch._C._functorch.peek_interpreter_stack() is not None",
        "    or (torch._C._len_torch_dispatch_stack() > 0 and _modes_record())",
        ")",
    ]
    return f"{MODES}\n\ndef _traced({names.signature()}) -> bool:\n{indented(lines)}"
