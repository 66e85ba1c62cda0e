//! What debug information says of types and functions, in one table: entries with their parents, as far as BTF has a use
//! for them.

use std::collections::HashMap;

use gimli::constants as c;
use gimli::{AttributeValue, DebuggingInformationEntry, Dwarf, EndianSlice, LittleEndian, Unit, UnitOffset};

type Slice<'a> = EndianSlice<'a, LittleEndian>;
type Value<'a> = AttributeValue<Slice<'a>>;

/// The place of an entry in the table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct At(usize);

/// An entry.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub tag: gimli::DwTag,
    pub name: Option<Box<str>>,
    linkage: Option<Box<str>>,
    /// Where its type is, from the start of the section.
    ty: Option<usize>,
    /// The entry that says what this one does not: its declaration, or the function that it is a copy of.
    origin: Option<usize>,
    pub size: Option<u64>,
    /// The number of elements, or an enumerator's value.
    pub value: Option<i64>,
    /// Bytes from the start of the struct.
    pub place: u64,
    /// Bits of a bit field, and where it begins: from the start of the struct, or as DWARF 3 counts.
    pub bits: Option<u64>,
    pub bit_place: Option<u64>,
    pub old_bit_place: Option<u64>,
    pub encoding: Option<gimli::DwAte>,
    pub declaration: bool,
    external: bool,
    /// A function with a place in the file.
    placed: bool,
    convention: Option<gimli::DwCc>,
    children: Vec<At>,
}

/// The table.
#[derive(Debug, Default)]
pub(super) struct Entries {
    entries: Vec<Entry>,
    by_offset: HashMap<usize, At>,
    split: bool,
}

fn wanted(tag: gimli::DwTag) -> bool {
    matches!(
        tag,
        c::DW_TAG_base_type
            | c::DW_TAG_pointer_type
            | c::DW_TAG_reference_type
            | c::DW_TAG_rvalue_reference_type
            | c::DW_TAG_const_type
            | c::DW_TAG_volatile_type
            | c::DW_TAG_restrict_type
            | c::DW_TAG_atomic_type
            | c::DW_TAG_typedef
            | c::DW_TAG_structure_type
            | c::DW_TAG_class_type
            | c::DW_TAG_union_type
            | c::DW_TAG_enumeration_type
            | c::DW_TAG_enumerator
            | c::DW_TAG_array_type
            | c::DW_TAG_subrange_type
            | c::DW_TAG_subroutine_type
            | c::DW_TAG_subprogram
            | c::DW_TAG_formal_parameter
            | c::DW_TAG_unspecified_parameters
            | c::DW_TAG_member
            | c::DW_TAG_inheritance
    )
}

impl Entries {
    /// Reads all units.
    pub fn read(dwarf: &Dwarf<Slice<'_>>) -> gimli::Result<Entries> {
        let mut all = Entries::default();
        let mut units = dwarf.units();
        while let Some(header) = units.next()? {
            let unit = dwarf.unit(header)?;
            all.split |= unit.dwo_id.is_some();
            all.unit(dwarf, &unit)?;
        }
        Ok(all)
    }

    fn unit(&mut self, dwarf: &Dwarf<Slice<'_>>, unit: &Unit<Slice<'_>>) -> gimli::Result<()> {
        let mut cursor = unit.entries();
        // The entries on the way to the present one, by depth; some are not kept.
        let mut parents: Vec<(isize, Option<At>)> = Vec::new();
        while cursor.next_entry()? {
            let Some(die) = cursor.current() else { continue };
            let depth = die.depth();
            parents.retain(|(d, _)| *d < depth);
            let mut at = None;
            if wanted(die.tag()) {
                let index = At(self.entries.len());
                self.by_offset.insert(global(unit, die.offset()), index);
                self.entries.push(entry(dwarf, unit, die));
                if let Some(&(_, Some(parent))) = parents.last()
                    && let Some(parent) = self.entries.get_mut(parent.0)
                {
                    parent.children.push(index);
                }
                at = Some(index);
            }
            parents.push((depth, at));
        }
        Ok(())
    }

    /// True if what is meant is in other files.
    pub fn is_split(&self) -> bool {
        self.split && self.functions().next().is_none()
    }

    pub fn get(&self, at: At) -> Option<&Entry> {
        self.entries.get(at.0)
    }

    /// The entries below one, in order.
    pub fn children(&self, at: At) -> impl Iterator<Item = (At, &Entry)> {
        let of = self.get(at).map_or(&[][..], |e| &e.children);
        of.iter().filter_map(|&at| Some((at, self.get(at)?)))
    }

    /// The entry, and those that say what it does not.
    fn origins(&self, at: At) -> impl Iterator<Item = &Entry> {
        let mut next = Some(at);
        // A chain is short; a damaged one may be a ring.
        (0..4).map_while(move |_| {
            let entry = self.get(next?)?;
            next = entry.origin.and_then(|o| self.by_offset.get(&o)).copied();
            Some(entry)
        })
    }

    /// The type of an entry; `None` for `void`.
    pub fn type_of(&self, at: At) -> Option<At> {
        let ty = self.origins(at).find_map(|e| e.ty)?;
        self.by_offset.get(&ty).copied()
    }

    /// Its name.
    pub fn name(&self, at: At) -> &str {
        self.origins(at).find_map(|e| e.name.as_deref()).unwrap_or("")
    }

    /// Functions with a place in the file.
    pub fn functions(&self) -> impl Iterator<Item = At> {
        let placed = |e: &Entry| e.tag == c::DW_TAG_subprogram && e.placed;
        self.entries.iter().enumerate().filter(move |(_, e)| placed(e)).map(|(n, _)| At(n))
    }

    /// The name of a function's symbol.
    pub fn linkage_name(&self, at: At) -> Option<&str> {
        let own = self.origins(at).find_map(|e| e.linkage.as_deref());
        own.or_else(|| Some(self.name(at))).filter(|n| !n.is_empty())
    }

    /// The compiler calls it in a way of its own.
    pub fn has_other_convention(&self, at: At) -> bool {
        self.origins(at).any(|e| e.convention.is_some_and(|cc| cc != c::DW_CC_normal))
    }

    /// Others see it.
    pub fn is_external(&self, at: At) -> bool {
        self.origins(at).any(|e| e.external)
    }

    /// True for a class whose objects are passed by their address, false for one whose objects are passed by value; `None`
    /// if the compiler does not say.
    pub fn is_passed_by_address(&self, at: At) -> Option<bool> {
        match self.get(at)?.convention? {
            c::DW_CC_pass_by_reference => Some(true),
            c::DW_CC_pass_by_value => Some(false),
            _ => None,
        }
    }
}

/// Where in its section an entry of a unit is.
fn global(unit: &Unit<Slice<'_>>, offset: UnitOffset) -> usize {
    offset.to_unit_section_offset(&unit.header).0
}

fn text(dwarf: &Dwarf<Slice<'_>>, unit: &Unit<Slice<'_>>, value: Option<Value<'_>>) -> Option<Box<str>> {
    let text = dwarf.attr_string(unit, value?).ok()?;
    Some(text.to_string_lossy().into())
}

fn entry(dwarf: &Dwarf<Slice<'_>>, unit: &Unit<Slice<'_>>, die: &DebuggingInformationEntry<Slice<'_>>) -> Entry {
    let attr = |name| die.attr_value(name);
    let number = |name| attr(name).and_then(|v| v.udata_value());
    let flag = |name| matches!(attr(name), Some(AttributeValue::Flag(true)));
    let reference = |name| match attr(name) {
        Some(AttributeValue::UnitRef(offset)) => Some(global(unit, offset)),
        Some(AttributeValue::DebugInfoRef(offset)) => Some(offset.0),
        _ => None,
    };
    let tag = die.tag();
    let value = match tag {
        c::DW_TAG_enumerator => attr(c::DW_AT_const_value).and_then(signed),
        c::DW_TAG_subrange_type => {
            let bound = || number(c::DW_AT_upper_bound).and_then(|n| i64::try_from(n).ok()?.checked_add(1));
            number(c::DW_AT_count).and_then(|n| i64::try_from(n).ok()).or_else(bound)
        }
        _ => None,
    };
    let placed = tag == c::DW_TAG_subprogram && (attr(c::DW_AT_low_pc).is_some() || attr(c::DW_AT_ranges).is_some());
    Entry {
        tag,
        name: text(dwarf, unit, attr(c::DW_AT_name)),
        linkage: text(dwarf, unit, attr(c::DW_AT_linkage_name)),
        ty: reference(c::DW_AT_type),
        origin: reference(c::DW_AT_abstract_origin).or_else(|| reference(c::DW_AT_specification)),
        size: number(c::DW_AT_byte_size),
        value,
        place: number(c::DW_AT_data_member_location).unwrap_or(0),
        bits: number(c::DW_AT_bit_size),
        bit_place: number(c::DW_AT_data_bit_offset),
        old_bit_place: number(c::DW_AT_bit_offset),
        encoding: match attr(c::DW_AT_encoding) {
            Some(AttributeValue::Encoding(e)) => Some(e),
            _ => None,
        },
        declaration: flag(c::DW_AT_declaration),
        external: flag(c::DW_AT_external),
        placed,
        convention: match attr(c::DW_AT_calling_convention) {
            Some(AttributeValue::CallingConvention(cc)) => Some(cc),
            _ => None,
        },
        children: Vec::new(),
    }
}

fn signed(value: Value<'_>) -> Option<i64> {
    value.sdata_value().or_else(|| value.udata_value().map(u64::cast_signed))
}
