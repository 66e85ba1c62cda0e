//! The catalogue of rejection reasons: a stable id and the rule in one sentence.

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $id:literal, $rule:literal;)*) => {
        /// Why a program was not accepted.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
        pub enum Reason {
            $(#[doc = $rule] $name,)*
        }

        impl Reason {
            /// Every reason.
            pub const ALL: &'static [Reason] = &[$(Reason::$name,)*];

            /// The stable identifier.
            pub const fn id(self) -> &'static str {
                match self { $(Reason::$name => $id,)* }
            }

            /// The rule that was broken, in one sentence.
            pub const fn rule(self) -> &'static str {
                match self { $(Reason::$name => $rule,)* }
            }
        }
    };
}

reasons! {
    // Shape of the program.
    ProgramSize = "program-size", "A program has between one and a million instructions.";
    InvalidOpcode = "invalid-opcode", "Every instruction is one that the instruction set defines.";
    ReservedField = "reserved-field", "Fields that an instruction does not use are zero.";
    InvalidRegister = "invalid-register", "Registers are r0 to r10.";
    FramePointerWrite = "frame-pointer-write", "The frame pointer r10 is read-only.";
    InvalidLoadImmediate = "invalid-load-immediate", "A 64-bit immediate takes two whole instruction slots.";
    JumpOutOfRange = "jump-out-of-range", "A jump stays inside its function and lands on an instruction.";
    UnreachableCode = "unreachable-code", "Every instruction can be reached.";
    FallThrough = "fall-through", "A function ends with exit or an unconditional jump.";
    CallTarget = "call-target", "A call names a function of the program.";
    BackEdge = "back-edge", "Only programs with the needed privilege may loop.";
    RecursiveCall = "recursive-call", "Functions do not call themselves, directly or through others.";
    CallDepth = "call-depth", "At most eight functions are active at once.";
    StackDepth = "stack-depth", "The frames of a chain of calls share 512 bytes of stack.";
    TailCallStack = "tail-call-stack", "A chain of calls that reaches a tail call uses at most 256 bytes of stack.";
    BtfInfo = "btf-info", "The function and line records name functions of the program.";
    BadMapReference = "bad-map-reference", "A map reference names a map of the program.";
    MapNotForProgram = "map-not-for-program", "The map can be used by programs of this type.";
    TooManyMaps = "too-many-maps", "A program uses at most 64 maps.";
    ProgramType = "program-type", "The program type is one that can be loaded.";
    AttachType = "attach-type", "The expected attach type is one of the program type.";
    // Complexity.
    TooComplex = "too-complex", "All paths together are at most a million instructions.";
    JumpSequence = "jump-sequence", "At most 8192 branches are open at once.";
    InfiniteLoop = "infinite-loop", "A loop changes something on each round.";
    // Values.
    UninitializedRegister = "uninitialized-register", "A register is written before it is read.";
    PointerArithmetic = "pointer-arithmetic", "Pointers only take bounded additions and subtractions.";
    PointerOutOfRange = "pointer-out-of-range", "Pointer offsets stay within ±512 MiB.";
    PointerComparison = "pointer-comparison", "Pointers are only compared with what the rules allow.";
    DivisionByZero = "division-by-zero", "Nothing is divided by the constant zero.";
    InvalidShift = "invalid-shift", "A number is shifted by less than its width.";
    PossiblyNull = "possibly-null", "A pointer that may be null is checked first.";
    NotAPointer = "not-a-pointer", "Only pointers are dereferenced.";
    UnboundedOffset = "unbounded-offset", "A variable offset has a checked lower and upper bound.";
    NegativeOffset = "negative-offset", "A variable offset is not negative.";
    Misaligned = "misaligned", "Accesses that must be aligned are.";
    // Memory.
    StackOutOfBounds = "stack-out-of-bounds", "Stack accesses stay within the 512 bytes below r10.";
    StackUninitialized = "stack-uninitialized", "Stack bytes are written before they are read.";
    StackVariableOffset = "stack-variable-offset", "This access needs a constant offset on the stack.";
    SpilledPointerCorrupt = "spilled-pointer-corrupt", "A pointer saved on the stack is read back whole.";
    StackEscape = "stack-escape", "A pointer to a function's own stack does not leave it upwards.";
    MapValueOutOfBounds = "map-value-out-of-bounds", "Accesses stay inside the map value.";
    MapKeyOutOfBounds = "map-key-out-of-bounds", "Accesses stay inside the map key.";
    MemoryOutOfBounds = "memory-out-of-bounds", "Accesses stay inside the memory region.";
    PacketOutOfBounds = "packet-out-of-bounds", "A packet access is behind a comparison with data_end.";
    PacketAccess = "packet-access", "Programs of this type access packet data in the ways the kernel allows.";
    ReadOnlyMemory = "read-only-memory", "Read-only memory is not written.";
    WriteOnlyMemory = "write-only-memory", "Write-only memory is not read.";
    ContextAccess = "context-access", "Context accesses hit a field, whole and in its permitted direction.";
    ContextModified = "context-modified", "The context pointer is used as it came.";
    MapPointerAccess = "map-pointer-access", "Of a map itself only known fields are read.";
    SpecialField = "special-field", "Special fields of map values are only touched by their helpers.";
    AtomicAccess = "atomic-access", "Atomic operations work on aligned words of permitted memory.";
    PointerStore = "pointer-store", "Pointers are stored only where the rules allow.";
    // Calls.
    UnknownHelper = "unknown-helper", "The helper exists.";
    HelperNotAllowed = "helper-not-allowed", "The helper can be called by programs of this type.";
    HelperNeedsGpl = "helper-needs-gpl", "Some helpers are for GPL-compatible programs only.";
    HelperSleeps = "helper-sleeps", "Helpers that sleep are for sleepable programs.";
    ArgumentType = "argument-type", "Arguments are of the kinds that the function wants.";
    ArgumentSize = "argument-size", "A size argument is bounded and fits the memory it describes.";
    ArgumentConstant = "argument-constant", "Some arguments are constants known at load time.";
    ConstantString = "constant-string", "A format string is constant, terminated and well-formed.";
    MapNotForHelper = "map-not-for-helper", "Helper and map type fit.";
    UnknownMap = "unknown-map", "A map argument is one known map.";
    NoMapValue = "no-map-value", "The map holds values of the needed kind.";
    GlobalFunction = "global-function", "Global functions have BTF types that can be checked.";
    SubprogramReturn = "subprogram-return", "Functions return numbers.";
    CallNeedsPrivilege = "call-needs-privilege", "The call is possible where it stands.";
    // References and locks.
    UnreleasedReference = "unreleased-reference", "Every acquired reference is released on every path.";
    ReleaseWithoutAcquire = "release-without-acquire", "Only an acquired reference, unmodified, is released.";
    LockHeld = "lock-held", "Locks and critical sections are left in order.";
    // Exit.
    ReturnValue = "return-value", "The return value is in the range of the program type.";
    ReturnPointer = "return-pointer", "A program returns a number, not a pointer.";
    // Bounds of skep.
    UnsupportedProgramType = "unsupported-program-type", "This program type is not judged yet.";
    UnsupportedHelper = "unsupported-helper", "This helper is not judged yet.";
    UnsupportedKfunc = "unsupported-kfunc", "Kernel functions are not judged yet.";
    UnsupportedMapType = "unsupported-map-type", "This map type is not judged yet.";
    UnsupportedFeature = "unsupported-feature", "This feature is not judged yet.";
    UnsupportedArgument = "unsupported-argument", "Arguments of this kind are not judged yet.";
}

#[cfg(test)]
mod tests {
    use super::Reason;

    #[test]
    fn ids_are_unique_kebab_case() {
        let mut ids: Vec<_> = Reason::ALL.iter().map(|r| r.id()).collect();
        assert!(ids.iter().all(|id| id.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')));
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), Reason::ALL.len());
    }
}
