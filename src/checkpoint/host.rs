//! Small tensors on the host, and the safetensors files of adapters.

use super::mapped::MappedFile;
use super::stream::write_chunks;
use crate::backend::DType;
use anyhow::{Result, bail, ensure};
use half::{bf16, f16};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

/// A tensor in fp32, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

/// Writes a safetensors file of host tensors.
pub(super) fn write_tensors(writer: &mut dyn Write, tensors: &BTreeMap<String, HostTensor>) -> Result<()> {
    for (name, HostTensor { shape, values }) in tensors {
        ensure!(shape.iter().product::<usize>() == values.len(), "tensor {name}: shape {shape:?} but {} values", values.len());
    }
    let shapes = tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shape.clone())).collect();
    write_chunks(writer, &shapes, |name, start, chunk| {
        chunk.copy_from_slice(&tensors[name].values[start..start + chunk.len()]);
        Ok(())
    })
}

/// Reads every tensor of a safetensors file into fp32 (exact for fp16, bf16 and fp32; other types are refused).
pub(super) fn read_tensors(path: &Path) -> Result<BTreeMap<String, HostTensor>> {
    let file = MappedFile::open(path, 0)?;
    if let Some((name, dtype)) = file.others.first_key_value() {
        bail!("{}: tensor {name} has element type {dtype}; only F16, BF16 and F32 are supported", path.display());
    }
    let read = |tensor| (file.data(tensor), tensor);
    let tensors = file.tensors.values().map(read).map(|(data, tensor)| {
        let pairs = || data.chunks_exact(2).map(|bytes| [bytes[0], bytes[1]]);
        let values = match tensor.dtype {
            DType::F16 => pairs().map(|bytes| f16::from_le_bytes(bytes).to_f32()).collect(),
            DType::BF16 => pairs().map(|bytes| bf16::from_le_bytes(bytes).to_f32()).collect(),
            _ => data.chunks_exact(4).map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])).collect(),
        };
        (tensor.name.clone(), HostTensor { shape: tensor.shape.clone(), values })
    });
    Ok(tensors.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::{Dtype, tensor::TensorView};
    use std::collections::HashMap;

    #[test]
    fn written_tensors_come_back_bit_for_bit() {
        let values = vec![0.1, f32::MIN_POSITIVE / 4.0, -0.0, f32::MAX];
        let tensors = BTreeMap::from([
            ("b".to_string(), HostTensor { shape: vec![2, 2], values: values.clone() }),
            ("a".to_string(), HostTensor { shape: vec![0, 3], values: vec![] }),
        ]);
        let file = tempfile::NamedTempFile::new().unwrap();
        write_tensors(&mut file.as_file(), &tensors).unwrap();
        let read = read_tensors(file.path()).unwrap();
        assert_eq!(read, tensors);
        assert!(read["b"].values.iter().zip(&values).all(|(a, b)| a.to_bits() == b.to_bits()));

        let view = |tensor: &HostTensor| bytemuck::cast_slice::<f32, u8>(&tensor.values).to_vec();
        let owned: Vec<_> = tensors.iter().map(|(name, tensor)| (name, tensor.shape.clone(), view(tensor))).collect();
        let views = owned.iter().map(|(name, shape, data)| (name, TensorView::new(Dtype::F32, shape.clone(), data).unwrap()));
        let reference = safetensors::serialize(views, Some(HashMap::from([("format".into(), "pt".into())]))).unwrap();
        assert_eq!(std::fs::read(file.path()).unwrap(), reference);
    }

    #[test]
    fn sixteen_bit_tensors_are_widened() {
        let (half, brain) = (f16::from_f32(1.5).to_le_bytes(), bf16::from_f32(-3.0).to_le_bytes());
        let views = [
            ("half", TensorView::new(Dtype::F16, vec![1], &half).unwrap()),
            ("brain", TensorView::new(Dtype::BF16, vec![1], &brain).unwrap()),
        ];
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), safetensors::serialize(views, None).unwrap()).unwrap();
        let read = read_tensors(file.path()).unwrap();
        assert_eq!((read["half"].values[0], read["brain"].values[0]), (1.5, -3.0));

        let integers = [("ids", TensorView::new(Dtype::I64, vec![1], &[0; 8]).unwrap())];
        std::fs::write(file.path(), safetensors::serialize(integers, None).unwrap()).unwrap();
        assert!(format!("{:#}", read_tensors(file.path()).unwrap_err()).contains("tensor ids has element type I64"));
    }

    #[test]
    fn a_wrong_shape_is_refused() {
        let tensors = BTreeMap::from([("a".to_string(), HostTensor { shape: vec![3], values: vec![0.0] })]);
        assert!(write_tensors(&mut Vec::new(), &tensors).unwrap_err().to_string().contains("tensor a"));
    }
}
