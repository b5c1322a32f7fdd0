//! The names that a torch pickle may ask for. Each stands for something that this reader does itself; none is looked up,
//! imported or called.

use crate::backend::DType;

/// What the elements of a storage are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// Weights can be made of it.
    Float(DType),
    /// Index buffers, masks and the like: name, bytes an element.
    Other(&'static str, usize),
}

impl Element {
    pub fn size(self) -> usize {
        match self {
            Element::Float(dtype) => dtype.size(),
            Element::Other(_, size) => size,
        }
    }
}

/// A name that is understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Global {
    /// `collections.OrderedDict`.
    Dictionary,
    /// `torch.Size`.
    Size,
    /// `torch._utils._rebuild_tensor` and `_v2`: storage, offset, size, stride, and what says nothing of the values.
    Tensor,
    /// `torch._utils._rebuild_parameter`: the tensor, and whether it is trained.
    Parameter,
    /// `torch._tensor._rebuild_from_type_v2`: one of the above with its arguments.
    Typed,
    Storage(Element),
    /// Plain data that may stand beside the weights (sets, states of random generators, settings). What is made of it
    /// is nothing: an empty mark.
    Inert,
}

/// What a name stands for; None: it is refused.
pub fn global(module: &str, name: &str) -> Option<Global> {
    Some(match (module, name) {
        ("collections", "OrderedDict") => Global::Dictionary,
        ("torch", "Size") => Global::Size,
        ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Global::Tensor,
        ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => Global::Parameter,
        ("torch._tensor", "_rebuild_from_type_v2") => Global::Typed,
        ("torch" | "torch.cuda", _) if name.ends_with("Storage") => Global::Storage(storage(name)?),
        ("torch.storage", "UntypedStorage") => Global::Storage(Element::Other("bytes", 1)),
        ("torch", "device" | "Tensor") | ("torch._tensor", "Tensor") | ("torch.nn.parameter", "Parameter" | "Buffer") => Global::Inert,
        ("torch", "float64" | "float32" | "float16" | "bfloat16" | "int64" | "int32" | "int16" | "int8" | "uint8" | "bool") => {
            Global::Inert
        }
        ("__builtin__" | "builtins", "set" | "frozenset" | "bytearray" | "complex" | "slice") => Global::Inert,
        ("numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct" | "scalar") => Global::Inert,
        ("numpy", "ndarray" | "dtype") | ("_codecs", "encode") | ("argparse", "Namespace") => Global::Inert,
        _ => return None,
    })
}

fn storage(name: &str) -> Option<Element> {
    Some(match name {
        "DoubleStorage" => Element::Float(DType::F64),
        "FloatStorage" => Element::Float(DType::F32),
        "HalfStorage" => Element::Float(DType::F16),
        "BFloat16Storage" => Element::Float(DType::BF16),
        "LongStorage" => Element::Other("int64", 8),
        "IntStorage" => Element::Other("int32", 4),
        "ShortStorage" => Element::Other("int16", 2),
        "CharStorage" => Element::Other("int8", 1),
        "ByteStorage" => Element::Other("uint8", 1),
        "BoolStorage" => Element::Other("bool", 1),
        "ComplexFloatStorage" => Element::Other("complex64", 8),
        "ComplexDoubleStorage" => Element::Other("complex128", 16),
        "UntypedStorage" => Element::Other("bytes", 1),
        _ => return None,
    })
}
