//! A reader of pickles that runs nothing. It knows the opcodes that torch.save writes (protocols 2 to 5) and the names of
//! `globals.rs`; anything else ends the reading with its name. Values lie in one list and hold each other by index, so
//! that neither depth nor sharing costs a stack or a copy, and there is a bound on how many there may be.

use super::globals::{Element, Global, global};
use anyhow::{Result, bail, ensure};
use std::collections::HashMap;

/// Index of a value.
pub type Id = u32;

/// A value of the pickle.
#[derive(Debug)]
pub enum Value<'a> {
    None,
    Int(i64),
    Text(&'a str),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    /// Keys and values in the order in which they were set.
    Dict(Vec<(Id, Id)>),
    Global(Global),
    /// Index of a storage.
    Storage(u32),
    Tensor(Box<TensorValue>),
    /// Anything that weights are not made of: numbers, bytes, inert objects.
    Inert,
}

/// A tensor as the pickle tells it; nothing is checked against the file yet.
#[derive(Clone, Debug)]
pub struct TensorValue {
    /// Index of its storage.
    pub storage: u32,
    /// Elements from the storage's start.
    pub offset: u64,
    pub shape: Vec<u64>,
    /// Elements from one index to the next.
    pub strides: Vec<u64>,
}

/// A storage that the pickle names: its bytes lie elsewhere in the file.
#[derive(Debug)]
pub struct StorageValue<'a> {
    pub key: &'a str,
    pub element: Element,
    pub elements: u64,
}

/// What one pickle holds.
pub struct Pickle<'a> {
    pub values: Vec<Value<'a>>,
    pub storages: Vec<StorageValue<'a>>,
    pub root: Id,
    /// Bytes that it takes.
    pub length: usize,
}

/// Values, marks, remembered values, and items that are copied. A state dict takes some twenty a tensor.
const MOST_VALUES: usize = 1 << 20;
/// Dimensions of a tensor.
const MOST_DIMENSIONS: usize = 16;

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value<'a>>,
    storages: Vec<StorageValue<'a>>,
    /// The index of every storage key.
    keys: HashMap<&'a str, u32>,
    stack: Vec<Id>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
    /// Items of values that were copied.
    copied: usize,
}

/// Reads the pickle at the start of `bytes`.
pub fn read(bytes: &[u8]) -> Result<Pickle<'_>> {
    let mut reader = Reader {
        bytes,
        at: 0,
        values: Vec::new(),
        storages: Vec::new(),
        keys: HashMap::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        copied: 0,
    };
    let root = loop {
        let at = reader.at;
        if let Some(root) = reader.step().map_err(|error| error.context(format!("pickle, byte {at}")))? {
            break root;
        }
    };
    Ok(Pickle { values: reader.values, storages: reader.storages, root, length: reader.at })
}

fn bounded(count: usize) -> Result<()> {
    ensure!(count < MOST_VALUES, "more than {MOST_VALUES} values: this is no state dict");
    Ok(())
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: u64) -> Result<&'a [u8]> {
        let end = usize::try_from(count).ok().and_then(|count| self.at.checked_add(count)).filter(|&end| end <= self.bytes.len());
        let Some(end) = end else { bail!("it ends in the middle: the file is truncated or damaged; download or copy it again") };
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    /// A little-endian number of `width` bytes.
    fn number(&mut self, width: u64) -> Result<u64> {
        Ok(self.take(width)?.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }

    fn counted(&mut self, width: u64) -> Result<&'a [u8]> {
        let count = self.number(width)?;
        self.take(count)
    }

    fn text(&mut self, width: u64) -> Result<&'a str> {
        match std::str::from_utf8(self.counted(width)?) {
            Ok(text) => Ok(text),
            Err(_) => bail!("a text that is not UTF-8"),
        }
    }

    /// Up to the end of a line.
    fn line(&mut self) -> Result<&'a str> {
        let rest = &self.bytes[self.at..];
        let length = rest.iter().take(1024).position(|&byte| byte == b'\n');
        match length.map(|length| std::str::from_utf8(&rest[..length])) {
            Some(Ok(line)) => {
                self.at += line.len() + 1;
                Ok(line)
            }
            _ => bail!("a name without end"),
        }
    }

    fn push(&mut self, value: Value<'a>) -> Result<()> {
        bounded(self.values.len())?;
        self.stack.push(self.values.len() as Id);
        self.values.push(value);
        Ok(())
    }

    /// What is on top of the stack, above the latest mark.
    fn pop(&mut self) -> Result<Id> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.len() > floor {
            true => Ok(self.stack.pop().unwrap_or_default()),
            false => bail!("an opcode for which nothing is on the stack"),
        }
    }

    /// Everything above the latest mark.
    fn pop_mark(&mut self) -> Result<Vec<Id>> {
        match self.marks.pop() {
            Some(mark) => Ok(self.stack.split_off(mark)),
            None => bail!("an opcode without the mark that belongs to it"),
        }
    }

    fn top(&self) -> Result<Id> {
        match self.stack.last() {
            Some(&id) if self.stack.len() > self.marks.last().copied().unwrap_or(0) => Ok(id),
            _ => bail!("an opcode for which nothing is on the stack"),
        }
    }

    fn value(&self, id: Id) -> &Value<'a> {
        &self.values[id as usize]
    }

    fn remember(&mut self, index: u64) -> Result<()> {
        bounded(self.memo.len())?;
        let top = self.top()?;
        self.memo.insert(index, top);
        Ok(())
    }

    fn recall(&mut self, index: u64) -> Result<()> {
        match self.memo.get(&index) {
            Some(&id) => {
                bounded(self.stack.len())?;
                self.stack.push(id);
                Ok(())
            }
            None => bail!("it refers to value {index}, which there is not"),
        }
    }

    fn tuple(&mut self, count: usize) -> Result<()> {
        let mut items = Vec::with_capacity(count);
        for _ in 0..count {
            items.push(self.pop()?);
        }
        items.reverse();
        self.push(Value::Tuple(items))
    }

    /// Executes one opcode; the result at the end.
    fn step(&mut self) -> Result<Option<Id>> {
        let opcode = self.take(1)?[0];
        match opcode {
            0x80 => {
                let protocol = self.number(1)?;
                ensure!((2..=5).contains(&protocol), "pickle protocol {protocol} is not supported: save with torch.save's own (2)");
            }
            0x95 => {
                self.number(8)?; // the length of a frame, which says nothing of the values
            }
            b'.' => {
                let root = self.pop()?;
                ensure!(self.stack.is_empty() && self.marks.is_empty(), "it ends with values left on the stack");
                return Ok(Some(root));
            }
            b'(' => {
                bounded(self.marks.len())?;
                self.marks.push(self.stack.len());
            }
            b'0' => {
                self.pop()?;
            }
            b'1' => {
                self.pop_mark()?;
            }
            b'N' => self.push(Value::None)?,
            0x88 | 0x89 => self.push(Value::Inert)?, // True, False
            b'J' => {
                let number = self.number(4)? as u32 as i32;
                self.push(Value::Int(i64::from(number)))?;
            }
            b'K' => self.integer(1)?,
            b'M' => self.integer(2)?,
            0x8a => self.long(1)?,
            0x8b => self.long(4)?,
            b'G' => {
                self.take(8)?;
                self.push(Value::Inert)?;
            }
            b'X' => self.string(4)?,
            0x8c => self.string(1)?,
            0x8d => self.string(8)?,
            b'U' => self.old_string(1)?,
            b'T' => self.old_string(4)?,
            b'C' => self.blob(1)?,
            b'B' => self.blob(4)?,
            0x8e | 0x96 => self.blob(8)?,
            b')' => self.tuple(0)?,
            0x85 => self.tuple(1)?,
            0x86 => self.tuple(2)?,
            0x87 => self.tuple(3)?,
            b't' => {
                let items = self.pop_mark()?;
                self.push(Value::Tuple(items))?;
            }
            b']' => self.push(Value::List(Vec::new()))?,
            b'l' => {
                let items = self.pop_mark()?;
                self.push(Value::List(items))?;
            }
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            b'e' => {
                let items = self.pop_mark()?;
                self.append(items)?;
            }
            b'}' => self.push(Value::Dict(Vec::new()))?,
            b'd' => {
                let items = self.pop_mark()?;
                self.push(Value::Dict(Vec::new()))?;
                self.set(items)?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set(vec![key, value])?;
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.set(items)?;
            }
            0x8f => self.push(Value::Inert)?, // an empty set
            0x90 => {
                self.pop_mark()?; // the items of a set
                self.expect_inert("ADDITEMS")?;
            }
            0x91 => {
                self.pop_mark()?;
                self.push(Value::Inert)?;
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(module, name)?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                match (self.value(module), self.value(name)) {
                    (&Value::Text(module), &Value::Text(name)) => self.global(module, name)?,
                    _ => bail!("a name that is no text"),
                }
            }
            b'Q' => self.storage()?,
            b'R' => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                let result = self.call(function, arguments)?;
                self.push(result)?;
            }
            0x81 => {
                let (_, class) = (self.pop()?, self.pop()?);
                ensure!(matches!(self.value(class), Value::Global(Global::Inert)), "it makes an object of a class that is not understood");
                self.push(Value::Inert)?;
            }
            b'b' => {
                // Attributes of the object below, such as a state dict's `_metadata`.
                self.pop()?;
                let below = self.top()?;
                ensure!(
                    matches!(self.value(below), Value::Dict(_) | Value::Inert | Value::Tensor(_)),
                    "it gives attributes to a plain value"
                );
            }
            b'q' => {
                let index = self.number(1)?;
                self.remember(index)?;
            }
            b'r' => {
                let index = self.number(4)?;
                self.remember(index)?;
            }
            0x94 => self.remember(self.memo.len() as u64)?,
            b'h' => {
                let index = self.number(1)?;
                self.recall(index)?;
            }
            b'j' => {
                let index = self.number(4)?;
                self.recall(index)?;
            }
            other => bail!("opcode {}, which a file of weights does not need; nothing was run", opcode_name(other)),
        }
        Ok(None)
    }

    fn integer(&mut self, width: u64) -> Result<()> {
        let number = self.number(width)?;
        self.push(Value::Int(number as i64))
    }

    /// An integer of any length; those beyond 64 bits are of no use here.
    fn long(&mut self, width: u64) -> Result<()> {
        let bytes = self.counted(width)?;
        let value = match bytes.last() {
            None => Value::Int(0),
            Some(last) if bytes.len() <= 8 => {
                let sign = if last & 0x80 == 0 { 0 } else { -1 };
                Value::Int(bytes.iter().rev().fold(sign, |number: i64, &byte| number << 8 | i64::from(byte)))
            }
            Some(_) => Value::Inert,
        };
        self.push(value)
    }

    fn string(&mut self, width: u64) -> Result<()> {
        let text = self.text(width)?;
        self.push(Value::Text(text))
    }

    /// A string of Python 2: text, or bytes.
    fn old_string(&mut self, width: u64) -> Result<()> {
        let value = std::str::from_utf8(self.counted(width)?).map_or(Value::Inert, Value::Text);
        self.push(value)
    }

    fn blob(&mut self, width: u64) -> Result<()> {
        self.counted(width)?;
        self.push(Value::Inert)
    }

    fn append(&mut self, items: Vec<Id>) -> Result<()> {
        let below = self.top()?;
        match &mut self.values[below as usize] {
            Value::List(list) => list.extend(items),
            Value::Inert => {}
            _ => bail!("it appends to what is no list"),
        }
        Ok(())
    }

    /// Sets the keys and values that alternate in `items`.
    fn set(&mut self, items: Vec<Id>) -> Result<()> {
        ensure!(items.len().is_multiple_of(2), "a key without a value");
        let below = self.top()?;
        match &mut self.values[below as usize] {
            Value::Dict(pairs) => pairs.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1]))),
            Value::Inert => {}
            _ => bail!("it sets an item of what is no dictionary"),
        }
        Ok(())
    }

    fn expect_inert(&self, opcode: &str) -> Result<()> {
        ensure!(matches!(self.value(self.top()?), Value::Inert), "{opcode} on what is no set");
        Ok(())
    }

    fn global(&mut self, module: &str, name: &str) -> Result<()> {
        match global(module, name) {
            Some(known) => self.push(Value::Global(known)),
            None => bail!(
                "it asks for {}.{}, which weights are not made of; nothing was run (a file from a source that you trust: save its \
                 state_dict() alone)",
                module.escape_default(),
                name.escape_default()
            ),
        }
    }

    /// A persistent id: ('storage', type, key, location, elements) and, in old files, a view, which must be None.
    fn storage(&mut self) -> Result<()> {
        let id = self.pop()?;
        let damaged = "a persistent id that is no storage";
        let Value::Tuple(parts) = self.value(id) else { bail!(damaged) };
        ensure!((5..=6).contains(&parts.len()), damaged);
        let parts: Vec<&Value> = parts.iter().map(|&part| self.value(part)).collect();
        let (Value::Text("storage"), &Value::Global(Global::Storage(element)), &Value::Text(key), &Value::Int(elements)) =
            (parts[0], parts[1], parts[2], parts[4])
        else {
            bail!(damaged)
        };
        ensure!(key.len() <= 64 && !key.contains(char::is_control), "a storage under a name that torch.save does not give");
        ensure!(
            matches!(parts.get(5), None | Some(Value::None)),
            "storage {key} is a view of another (PyTorch before 0.4): save it with a newer torch"
        );
        let Ok(elements) = u64::try_from(elements) else { bail!("storage {key} has {elements} elements") };
        let index = match self.keys.get(key) {
            Some(&index) => {
                let known = &self.storages[index as usize];
                ensure!(known.element == element && known.elements == elements, "storage {key} is described in two ways");
                index
            }
            None => {
                let index = self.storages.len() as u32;
                self.storages.push(StorageValue { key, element, elements });
                self.keys.insert(key, index);
                index
            }
        };
        self.push(Value::Storage(index))
    }

    /// What REDUCE makes: the few functions are done here.
    fn call(&mut self, function: Id, arguments: Id) -> Result<Value<'a>> {
        let (&Value::Global(function), Value::Tuple(arguments)) = (self.value(function), self.value(arguments)) else {
            bail!("a call of what is no function")
        };
        let (function, arguments) = match function {
            Global::Typed => {
                // The function, the class, its arguments, attributes.
                let [function, _, arguments, _] = arguments.as_slice() else { bail!("a tensor with a wrong number of arguments") };
                match (self.value(*function), self.value(*arguments)) {
                    (&Value::Global(function @ (Global::Tensor | Global::Parameter)), Value::Tuple(arguments)) => (function, arguments),
                    _ => bail!("a tensor of a class that is not understood"),
                }
            }
            function => (function, arguments),
        };
        // No function here takes more; what follows says nothing of the values.
        let arguments: Vec<Id> = arguments.iter().take(MOST_DIMENSIONS).copied().collect();
        self.apply(function, &arguments)
    }

    fn apply(&mut self, function: Global, arguments: &[Id]) -> Result<Value<'a>> {
        match function {
            Global::Dictionary => self.dictionary(arguments),
            Global::Size => match arguments.first() {
                Some(&sizes) => match self.value(sizes) {
                    Value::Tuple(sizes) | Value::List(sizes) if sizes.len() <= MOST_DIMENSIONS => Ok(Value::Tuple(sizes.clone())),
                    _ => bail!("a torch.Size of no tuple of sizes"),
                },
                None => Ok(Value::Tuple(Vec::new())),
            },
            Global::Tensor => {
                let [storage, offset, shape, strides, ..] = arguments else { bail!("a tensor with a wrong number of arguments") };
                let Value::Storage(storage) = self.value(*storage) else { bail!("a tensor without a storage") };
                let (shape, strides) = (self.sizes(*shape)?, self.sizes(*strides)?);
                ensure!(shape.len() == strides.len(), "a tensor of {} sizes and {} strides", shape.len(), strides.len());
                Ok(Value::Tensor(Box::new(TensorValue { storage: *storage, offset: self.size(*offset)?, shape, strides })))
            }
            Global::Parameter => match arguments.first().map(|&tensor| self.value(tensor)) {
                Some(Value::Tensor(tensor)) => Ok(Value::Tensor(tensor.clone())),
                _ => bail!("a parameter without a tensor"),
            },
            Global::Inert => Ok(Value::Inert),
            Global::Typed | Global::Storage(_) => bail!("a call of what is no function"),
        }
    }

    fn dictionary(&mut self, arguments: &[Id]) -> Result<Value<'a>> {
        let Some(&pairs) = arguments.first() else { return Ok(Value::Dict(Vec::new())) };
        let Value::List(pairs) = &self.values[pairs as usize] else { bail!("a dictionary of what is no list of pairs") };
        self.copied += pairs.len();
        bounded(self.copied)?;
        let pair = |&pair: &Id| match self.value(pair) {
            Value::Tuple(pair) | Value::List(pair) if pair.len() == 2 => Ok((pair[0], pair[1])),
            _ => bail!("a dictionary of what is no list of pairs"),
        };
        Ok(Value::Dict(pairs.iter().map(pair).collect::<Result<_>>()?))
    }

    fn size(&self, id: Id) -> Result<u64> {
        match self.value(id) {
            Value::Int(number) if *number >= 0 => Ok(*number as u64),
            _ => bail!("a tensor with a size, stride or offset that is no number from 0"),
        }
    }

    fn sizes(&self, id: Id) -> Result<Vec<u64>> {
        let Value::Tuple(sizes) = self.value(id) else { bail!("a tensor whose size or stride is no tuple") };
        ensure!(sizes.len() <= MOST_DIMENSIONS, "a tensor of {} dimensions", sizes.len());
        sizes.iter().map(|&size| self.size(size)).collect()
    }
}

/// Names of opcodes that are not read here, for the message.
fn opcode_name(opcode: u8) -> String {
    let name = match opcode {
        b'i' => "INST",
        b'o' => "OBJ",
        b'P' => "PERSID",
        b'I' => "INT",
        b'L' => "LONG",
        b'F' => "FLOAT",
        b'S' => "STRING",
        b'V' => "UNICODE",
        b'p' => "PUT",
        b'g' => "GET",
        b'2' => "DUP",
        0x82..=0x84 => "EXT",
        0x92 => "NEWOBJ_EX",
        0x97 => "NEXT_BUFFER",
        0x98 => "READONLY_BUFFER",
        _ => return format!("{opcode:#04x}"),
    };
    format!("{name} ({opcode:#04x})")
}
