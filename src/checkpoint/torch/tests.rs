//! Files that the real torch wrote, files made to deceive, and good files with thousands of random faults.

use super::*;
use crate::backend::DType;
use crate::checkpoint::narrow::{NotFinite, narrow};
use half::f16;
use safetensors::SafeTensors;

fn golden(name: &str) -> Vec<u8> {
    std::fs::read(Path::new("tests/golden/torch-files").join(name)).unwrap()
}

/// Every tensor's bytes, row-major.
fn contents(bytes: &[u8], tensors: &[Strided]) -> Vec<(String, Vec<u8>)> {
    let gather = |tensor: &Strided| {
        let mut all = Vec::new();
        // An odd size of chunk, so that chunks end within rows.
        let append = |chunk: &[u8]| -> Result<()> {
            all.extend_from_slice(chunk);
            Ok(())
        };
        tensor.for_each_chunk(bytes, 7, append).unwrap();
        assert_eq!(all.len(), tensor.elements() * tensor.dtype.size());
        (tensor.name.clone(), all)
    };
    tensors.iter().map(gather).collect()
}

fn numbers(bytes: &[u8], dtype: DType) -> Vec<f64> {
    match dtype {
        DType::F16 => bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f64()).collect(),
        DType::BF16 => bytes.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f64()).collect(),
        DType::F64 => bytes.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect(),
        _ => bytes.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect(),
    }
}

fn agrees(file: &str, expected: &str) -> Vec<(String, &'static str)> {
    let (bytes, expected) = (golden(file), golden(expected));
    let (tensors, others) = super::read(&bytes, 0).unwrap();
    let expected = SafeTensors::deserialize(&expected).unwrap();
    assert_eq!(tensors.len(), expected.len(), "{file}");
    for (tensor, (name, found)) in tensors.iter().zip(contents(&bytes, &tensors)) {
        let view = expected.tensor(&name).unwrap();
        assert_eq!(tensor.shape, view.shape(), "{file}: {name}");
        assert_eq!(numbers(&found, tensor.dtype), numbers(view.data(), DType::F32), "{file}: {name}");
    }
    others
}

#[test]
fn tensors_of_every_layout_and_type() {
    for file in ["views.pt", "views-legacy.pt"] {
        assert_eq!(agrees(file, "views.safetensors"), [("positions".to_string(), "int64"), ("mask".to_string(), "bool")], "{file}");
    }
    let bytes = golden("views.pt");
    let (tensors, _) = super::read(&bytes, 3).unwrap();
    let tensor = |name: &str| tensors.iter().find(|tensor| tensor.name == name).unwrap();
    assert!(tensor("plain").is_contiguous() && tensor("tail").is_contiguous() && tensor("scalar").is_contiguous());
    assert!(!tensor("transposed").is_contiguous() && !tensor("columns").is_contiguous() && !tensor("permuted").is_contiguous());
    assert_eq!(tensor("plain").storage, tensor("transposed").storage);
    assert!(!tensor("plain").same_elements(tensor("transposed")) && tensor("plain").same_elements(tensor("plain")));
    assert_eq!((tensor("plain").file, tensor("double").dtype, tensor("half").dtype), (3, DType::F64, DType::F16));
}

#[test]
fn weights_among_the_state_of_a_training() {
    assert_eq!(agrees("module.pt", "module.safetensors"), []);
}

/// A zip archive of these entries; `spoil` may change an entry's record in the list.
fn archive(entries: &[(&str, &[u8])], spoil: impl Fn(&str, &mut Vec<u8>)) -> Vec<u8> {
    let (mut file, mut list) = (Vec::new(), Vec::new());
    for (name, bytes) in entries {
        let start = file.len() as u32;
        let size = (bytes.len() as u32).to_le_bytes();
        file.extend(b"PK\x03\x04");
        file.extend([0; 14]);
        file.extend([size, size].concat());
        file.extend((name.len() as u16).to_le_bytes());
        file.extend([0; 2]);
        file.extend(name.as_bytes());
        file.extend(*bytes);
        let mut record = b"PK\x01\x02".to_vec();
        record.extend([0; 16]);
        record.extend([size, size].concat());
        record.extend((name.len() as u16).to_le_bytes());
        record.extend([0; 12]);
        record.extend(start.to_le_bytes());
        record.extend(name.as_bytes());
        spoil(name, &mut record);
        list.extend(record);
    }
    let (start, size, count) = (file.len() as u32, list.len() as u32, entries.len() as u16);
    file.extend(list);
    file.extend(b"PK\x05\x06\0\0\0\0");
    file.extend([count.to_le_bytes(), count.to_le_bytes()].concat());
    file.extend([size.to_le_bytes(), start.to_le_bytes()].concat());
    file.extend([0; 2]);
    file
}

/// A file of a pickle and one storage `0` of 24 bytes.
fn file(pickle: &[u8]) -> Vec<u8> {
    archive(&[("a/data.pkl", pickle), ("a/data/0", &[0; 24])], |_, _| {})
}

fn text(text: &str) -> Vec<u8> {
    [b"X", (text.len() as u32).to_le_bytes().as_slice(), text.as_bytes()].concat()
}

fn integer(number: i64) -> Vec<u8> {
    [[0x8a, 8].as_slice(), &number.to_le_bytes()].concat()
}

fn tuple(items: &[Vec<u8>]) -> Vec<u8> {
    [b"(".as_slice(), &items.concat(), b"t"].concat()
}

/// A tensor of storage `0`, which the pickle says has `elements` fp32 elements.
fn tensor(elements: i64, offset: i64, shape: &[i64], strides: &[i64]) -> Vec<u8> {
    let storage = tuple(&[text("storage"), b"ctorch\nFloatStorage\n".to_vec(), text("0"), text("cpu"), integer(elements)]);
    let sizes = |sizes: &[i64]| tuple(&sizes.iter().map(|&size| integer(size)).collect::<Vec<_>>());
    let arguments = [[storage, b"Q".to_vec()].concat(), integer(offset), sizes(shape), sizes(strides), vec![0x89], b"}".to_vec()];
    [b"ctorch._utils\n_rebuild_tensor_v2\n".to_vec(), tuple(&arguments), b"R".to_vec()].concat()
}

/// A pickle of a dictionary.
fn dictionary(items: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let items: Vec<u8> = items.iter().flat_map(|(name, value)| [text(name), value.clone()].concat()).collect();
    [b"\x80\x02}(".as_slice(), &items, b"u."].concat()
}

fn one(tensor: Vec<u8>) -> Vec<u8> {
    file(&dictionary(&[("w", tensor)]))
}

fn refused(bytes: &[u8], parts: &[&str]) {
    let message = match super::read(bytes, 0) {
        Ok((tensors, _)) => panic!("accepted, although {parts:?}: {tensors:?}"),
        Err(error) => format!("{error:#}"),
    };
    assert!(!message.contains('\n') && message.len() < 600, "{message}");
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}

#[test]
fn a_good_file_of_the_builder() {
    let bytes = one(tensor(6, 1, &[2, 2], &[1, 3]));
    let (tensors, _) = super::read(&bytes, 0).unwrap();
    assert_eq!(
        (tensors[0].name.as_str(), tensors[0].shape.as_slice(), tensors[0].strides.as_slice()),
        ("w", [2, 2].as_slice(), [1, 3].as_slice())
    );
    assert_eq!(bytes[tensors[0].storage.clone()], [0; 24]);
    assert_eq!(tensors[0].offset, tensors[0].storage.start + 4);
    // A name that comes twice counts once, and names of a wrapped model lose the wrapper's.
    let twice = dictionary(&[("module.w", tensor(6, 0, &[6], &[1])), ("module.w", tensor(6, 2, &[4], &[1]))]);
    let (tensors, _) = super::read(&file(&twice), 0).unwrap();
    assert_eq!((tensors.len(), tensors[0].name.as_str(), tensors[0].elements()), (1, "w", 4));
}

#[test]
fn what_would_execute_something_is_refused_by_name() {
    let call = |module: &str, name: &str| [format!("c{module}\n{name}\n").into_bytes(), tuple(&[text("true")]), b"R".to_vec()].concat();
    for (module, name) in [
        ("os", "system"),
        ("posix", "system"),
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("subprocess", "Popen"),
        ("torch.hub", "load"),
        ("torch", "load"),
        ("a", "b\rc"),
    ] {
        let shown = format!("{module}.{}", name.escape_default());
        refused(&one(call(module, name)), &["pickle, byte", &shown, "nothing was run"]);
        let stacked = [text(module), text(name), vec![0x93]].concat();
        refused(&one(stacked), &[&shown]);
    }
    refused(&file(b"\x80\x02(S'true'\nios\nsystem\n."), &["STRING"]);
    refused(&file(b"\x80\x02(ios\nsystem\n."), &["INST (0x69)", "nothing was run"]);
    refused(&file(b"\x80\x02(cos\nsystem\no."), &["os.system"]);
    refused(&file(b"\x80\x02(ccollections\nOrderedDict\no."), &["OBJ (0x6f)"]);
    refused(&file(b"\x80\x02ccollections\nOrderedDict\n)\x81."), &["class"]);
    refused(&file(b"\x80\x02\x82\x01."), &["EXT"]);
    refused(&file(b"\x80\x02P0\n."), &["PERSID"]);
    refused(&file(b"\x80\x02ctorch\nFloatStorage\n)R."), &["no function"]);
    refused(&file(b"\x80\x02ccollections\nOrderedDict\nX\x01\0\0\0aR."), &["no function"]);
    refused(&file(b"\x80\x02)}b."), &["attributes"]);
    refused(&file(b"\x80\x02(X\x06\0\0\0moduleX\x01\0\0\0atQ."), &["persistent id"]);
    refused(&file(b"\x80\x00."), &["protocol 0"]);
    refused(&file(b"\x80\x02\xff."), &["0xff"]);
}

#[test]
fn broken_pickles() {
    for (pickle, part) in [
        (b"".as_slice(), "in the middle"),
        (b"\x80\x02", "in the middle"),
        (b"\x80\x02}", "in the middle"),
        (b"\x80\x02.", "nothing is on the stack"),
        (b"\x80\x02}}.", "left on the stack"),
        (b"\x80\x02(}.", "left on the stack"),
        (b"\x80\x02}(.", "nothing is on the stack"),
        (b"\x80\x02t.", "mark"),
        (b"\x80\x02u.", "mark"),
        (b"\x80\x02(u.", "nothing is on the stack"),
        (b"\x80\x02}(Nu.", "without a value"),
        (b"\x80\x02NNNs.", "no dictionary"),
        (b"\x80\x02NNa.", "no list"),
        (b"\x80\x02N(N\x90.", "no set"),
        (b"\x80\x02(N\x86.", "nothing is on the stack"),
        (b"\x80\x02h\x07.", "value 7"),
        (b"\x80\x02j\xff\xff\xff\xff.", "value 4294967295"),
        (b"\x80\x02q\x00.", "nothing is on the stack"),
        (b"\x80\x02X\xff\xff\xff\x7fa.", "in the middle"),
        (b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\xff.", "in the middle"),
        (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\xff.", "in the middle"),
        (b"\x80\x02\x8b\xff\xff\xff\xff.", "in the middle"),
        (b"\x80\x02X\x01\0\0\0\xff.", "UTF-8"),
        (b"\x80\x02ctorch", "without end"),
        (b"\x80\x04NN\x93.", "no text"),
        (b"\x80\x02NQ.", "persistent id"),
        (b"\x80\x02N.", "no dictionary"),
        (b"\x80\x02}.", "no tensors"),
        (b"\x80\x02}X\x02\0\0\0lrK\x01s.", "its keys are lr"),
        (b"\x80\x02ctorch\nSize\nN\x85R.", "torch.Size"),
        (b"\x80\x02ccollections\nOrderedDict\n]N\x61\x85R.", "pairs"),
        (b"\x80\x02ctorch._utils\n_rebuild_parameter\n)R.", "without a tensor"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.", "number of arguments"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(NNNNtR.", "without a storage"),
        (b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n(NNNNtR.", "class"),
    ] {
        refused(&file(pickle), &[part]);
    }
    // A dictionary that holds itself, a hundred times over.
    refused(&file(b"\x80\x02}q\x00X\x06\0\0\0moduleht\x00s."), &["value 116"]);
    refused(&file(b"\x80\x02}q\x00X\x06\0\0\0moduleh\x00s."), &["dictionaries in dictionaries"]);
}

/// Neither depth, sharing nor repetition takes much time or memory.
#[test]
fn small_pickles_stay_small() {
    // A tuple in a tuple, half a million deep.
    let mut deep = b"\x80\x02N".to_vec();
    deep.extend(vec![0x85; 500_000]);
    refused(&file(&[&deep, b".".as_slice()].concat()), &["no dictionary"]);
    // Each tuple holds the one before twice: 2^100000 values, if they were copied.
    let mut doubled = b"\x80\x02)q\x00".to_vec();
    (0..100_000).for_each(|_| doubled.extend(b"h\x00h\x00\x86q\x00"));
    refused(&file(&[&doubled, b".".as_slice()].concat()), &["left on the stack"]);
    // More values, marks, remembered and copied ones than any state dict has.
    for repeated in [b"N".as_slice(), b"(", b")\x94", b"h\x00"] {
        let mut many = b"\x80\x04)\x94".to_vec();
        (0..(1 << 20) + 10).for_each(|_| many.extend(repeated));
        refused(&file(&many), &["more than 1048576 values"]);
    }
    let mut copied = b"\x80\x02]q\x00(".to_vec();
    (0..2000).for_each(|_| copied.extend(b"NN\x86"));
    copied.extend(b"e0ccollections\nOrderedDict\nq\x010");
    (0..1000).for_each(|_| copied.extend(b"h\x01h\x00\x85R0"));
    refused(&file(&copied), &["more than 1048576 values"]);
    let sizes = [b"\x80\x02(".to_vec(), b"N".repeat(1000), b"tq\x000ctorch\nSize\nh\x00\x85R.".to_vec()].concat();
    refused(&file(&sizes), &["torch.Size"]);
}

#[test]
fn tensors_beyond_their_storage() {
    let most = i64::MAX;
    for (described, part) in [
        (tensor(6, 0, &[7], &[1]), "reaches beyond its storage 0 of 6 elements"),
        (tensor(6, 6, &[1], &[1]), "reaches beyond"),
        (tensor(6, 1, &[2, 3], &[3, 1]), "reaches beyond"),
        (tensor(6, 0, &[2, 2], &[5, 1]), "reaches beyond"),
        (tensor(6, most, &[1], &[1]), "reaches beyond"),
        (tensor(6, 0, &[most, most], &[1, 1]), "reaches beyond"),
        (tensor(6, 0, &[2, 2], &[most, most]), "reaches beyond"),
        (tensor(6, 1, &[2], &[most]), "reaches beyond"),
        (tensor(6, 0, &[1 << 40], &[0]), "repeats the 6 elements of its storage"),
        (tensor(6, 0, &[6, 2], &[1, 0]), "repeats"),
        (tensor(7, 0, &[6], &[1]), "storage 0 has 24 bytes, not 7 of 4 bytes"),
        (tensor(most, 0, &[6], &[1]), "storage 0 has 24 bytes"),
        (tensor(-1, 0, &[6], &[1]), "-1 elements"),
        (tensor(6, -1, &[6], &[1]), "no number from 0"),
        (tensor(6, 0, &[-6], &[1]), "no number from 0"),
        (tensor(6, 0, &[6], &[1, 1]), "1 sizes and 2 strides"),
        (tensor(6, 0, &[1; 17], &[1; 17]), "17 dimensions"),
    ] {
        refused(&one(described), &[part]);
    }
    let both = dictionary(&[("a", tensor(6, 0, &[6], &[1])), ("b", tensor(5, 0, &[5], &[1]))]);
    refused(&file(&both), &["storage 0 is described in two ways"]);
    let missing = archive(&[("a/data.pkl", &dictionary(&[("w", tensor(6, 0, &[6], &[1]))]))], |_, _| {});
    refused(&missing, &["tensor w: there is no storage 0"]);
    // Many names for the same bytes.
    let names: Vec<String> = (0..9).map(|index| format!("w{index}")).collect();
    let all: Vec<(&str, Vec<u8>)> = names.iter().map(|name| (name.as_str(), tensor(6, 0, &[6], &[1]))).collect();
    super::read(&file(&dictionary(&all[..8])), 0).unwrap();
    refused(&file(&dictionary(&all)), &["made to deceive"]);
    refused(&file(&dictionary(&[("", tensor(6, 0, &[6], &[1]))])), &["name has 0 bytes"]);
}

#[test]
fn broken_archives() {
    let pickle = dictionary(&[("w", tensor(6, 0, &[6], &[1]))]);
    let storage = [0; 24];
    let entries: [(&str, &[u8]); 2] = [("a/data.pkl", &pickle), ("a/data/0", &storage)];
    let good = archive(&entries, |_, _| {});
    super::read(&good, 0).unwrap();
    for length in 0..good.len() {
        refused(&good[..length], &[]);
    }
    let record = |at: usize, bytes: &'static [u8]| {
        archive(&entries, move |name, record| {
            if name == "a/data/0" {
                record[at..at + bytes.len()].copy_from_slice(bytes);
            }
        })
    };
    // A method of compression; a size that only unpacking would give; encryption.
    refused(&record(10, &[8, 0]), &["entry a/data/0", "compressed"]);
    refused(&record(24, &[0xff, 0xff, 0xff, 0x7f]), &["entry a/data/0", "compressed (24 bytes for 2147483647)"]);
    refused(&record(8, &[1, 0]), &["entry a/data/0", "encrypted"]);
    refused(&record(20, &[0xff, 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff, 0x7f]), &["entry a/data/0", "outside the file"]);
    refused(&record(20, &[0xff; 8]), &["entry a/data/0", "outside the file"]);
    refused(&record(42, &[0xff; 4]), &["entry a/data/0", "outside the file"]);
    refused(&record(42, &[9, 0, 0, 0]), &["entry a/data/0", "no header"]);
    refused(&record(42, &[0, 0, 0, 0]), &["lie over each other"]);
    refused(&record(28, &[0xff, 0xff]), &["damaged"]);
    refused(&record(46, &[0xff]), &["damaged"]);
    refused(&record(0, &[0]), &["damaged"]);
    refused(&archive(&[entries[0], entries[0]], |_, _| {}), &["two entries a/data.pkl"]);
    refused(&archive(&[entries[0], ("b/data.pkl", &pickle)], |_, _| {}), &["more than one data.pkl"]);
    refused(&archive(&[entries[1]], |_, _| {}), &["without data.pkl"]);
    refused(&archive(&[entries[0], entries[1], ("a/constants.pkl", b"")], |_, _| {}), &["TorchScript"]);
    refused(&archive(&[entries[0], entries[1], ("a/byteorder", b"big")], |_, _| {}), &["big-endian"]);
    super::read(&archive(&[entries[0], entries[1], ("a/byteorder", b"little")], |_, _| {}), 0).unwrap();
    // The number of entries, size and place of the list.
    for (from_end, bytes) in [(12, [0xff, 0xff, 0, 0]), (10, [0xff; 4]), (6, [0xff; 4]), (6, [0; 4])] {
        let mut spoilt = good.clone();
        let at = spoilt.len() - from_end;
        spoilt[at..at + 4].copy_from_slice(&bytes);
        refused(&spoilt, &["list of entries"]);
    }
}

#[test]
fn other_files_are_named() {
    let mut tar = vec![b'x'; 600];
    tar[257..262].copy_from_slice(b"ustar");
    for (bytes, part) in [
        (b"version https://git-lfs.github.com/spec/v1\n".as_slice(), "git lfs pull"),
        (&tar, "tar"),
        (b"\x80\x02}q\x00.", "torch.save(model.state_dict(), FILE)"),
        (b"abc", "no file of torch.save"),
        (b"PK\x03\x04", "truncated"),
    ] {
        refused(bytes, &[part]);
    }
}

#[test]
fn truncated_old_files() {
    let good = golden("views-legacy.pt");
    super::read(&good, 0).unwrap();
    for length in (0..good.len()).step_by(3) {
        refused(&good[..length], &[]);
    }
    let mut version = good.clone();
    version[18] ^= 1;
    refused(&version, &["version"]);
}

/// Random faults in good files: every one is either found or leaves a file whose tensors all lie where they should.
#[test]
fn random_faults_do_no_harm() {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let mut found = 0;
    let mut tried = 0;
    for file in ["views.pt", "views-legacy.pt", "module.pt"] {
        let good = golden(file);
        for _ in 0..6000 {
            let mut bytes = good.clone();
            for _ in 0..1 + random(3) {
                let at = random(bytes.len());
                match random(6) {
                    0 => bytes.truncate(at.max(1)),
                    1 => bytes[at] = random(256) as u8,
                    2 => bytes[at] ^= 1 << random(8),
                    3 => {
                        let end = bytes.len().min(at + 1 + random(9));
                        bytes[at..end].fill([0, 0xff, 0x7f, 0x80][random(4)]);
                    }
                    4 => {
                        let (from, length) = (random(bytes.len()), 1 + random(20));
                        let piece = bytes[from..bytes.len().min(from + length)].to_vec();
                        let end = bytes.len().min(at + piece.len());
                        bytes[at..end].copy_from_slice(&piece[..end - at]);
                    }
                    _ => {
                        bytes.remove(at);
                    }
                }
            }
            tried += 1;
            match super::read(&bytes, 0) {
                Ok((tensors, _)) => {
                    for (tensor, (name, values)) in tensors.iter().zip(contents(&bytes, &tensors)) {
                        let _ = narrow(&name, &values, tensor.dtype, DType::F16, NotFinite::Keep);
                    }
                }
                Err(error) => {
                    found += 1;
                    let message = format!("{error:#}");
                    assert!(!message.contains('\n') && message.len() < 2000, "{message}");
                }
            }
        }
    }
    assert!(found > tried / 3 && found < tried, "{found} of {tried}");
}
