//! The catalogue of rejection reasons: a stable id, the rule in one sentence, and what satisfies it.
//!
//! A new reason is a row here and an entry in `bpf/reasons/` (see the README there), from which `docs/reasons.md` is made.

macro_rules! reasons {
    ($($name:ident = $id:literal, $rule:literal $(, $fix:literal)?;)*) => {
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

            /// What satisfies the rule, in one sentence.
            pub const fn fix(self) -> &'static str {
                match self { $(Reason::$name => concat!($($fix)?),)* }
            }

            /// The reason with this identifier.
            pub fn by_id(id: &str) -> Option<Reason> {
                Reason::ALL.iter().copied().find(|r| r.id() == id)
            }
        }
    };
}

reasons! {
    // Shape of the program.
    ProgramSize = "program-size", "A program has between one and a million instructions.",
        "Give the program at least one instruction; split one of more than a million with tail calls.";
    InvalidOpcode = "invalid-opcode", "Every instruction is one that the instruction set defines.",
        "Compile for a CPU level that the kernel knows (`-mcpu=v3`), and do not write instructions by hand.";
    ReservedField = "reserved-field", "Fields that an instruction does not use are zero.",
        "Set the unused fields of the instruction to zero.";
    InvalidRegister = "invalid-register", "Registers are r0 to r10.",
        "Name a register from r0 to r10.";
    FramePointerWrite = "frame-pointer-write", "The frame pointer r10 is read-only.",
        "Copy r10 into another register and change that one.";
    InvalidLoadImmediate = "invalid-load-immediate", "A 64-bit immediate takes two whole instruction slots.",
        "Follow the first half of the 64-bit immediate with its second half.";
    JumpOutOfRange = "jump-out-of-range", "A jump stays inside its function and lands on an instruction.",
        "Let the jump land on the first half of an instruction of the same function.";
    UnreachableCode = "unreachable-code", "Every instruction can be reached.",
        "Remove the code behind `return`, or make it reachable.";
    FallThrough = "fall-through", "A function ends with exit or an unconditional jump.",
        "Return from the function on every path.";
    CallTarget = "call-target", "A call names a function of the program.",
        "Call a function that is in the object; a callback is a static function.";
    BackEdge = "back-edge", "Only programs with the needed privilege may loop.",
        "Unroll the loop (`#pragma unroll`), or load the program with CAP_BPF.";
    CallDepth = "call-depth", "At most eight functions are active at once.",
        "Inline some of the functions (`static __always_inline`).";
    StackDepth = "stack-depth", "The frames of a chain of calls share 512 bytes of stack.",
        "Move large local variables into a per-CPU array map.";
    TailCallStack = "tail-call-stack", "A chain of calls that reaches a tail call uses at most 256 bytes of stack.",
        "Move large local variables of the functions on the way to the tail call into a per-CPU array map, or do the tail call in the main function.";
    BtfInfo = "btf-info", "The function and line records name functions of the program.",
        "Compile with `-g`, and do not strip the section .BTF.ext.";
    BadMapReference = "bad-map-reference", "A map reference names a map of the program.",
        "Take the address of a map that is defined in the object.";
    MapNotForProgram = "map-not-for-program", "The map can be used by programs of this type.",
        "Use a map type that programs of this type can use.";
    TooManyMaps = "too-many-maps", "A program uses at most 64 maps.",
        "Merge maps: global variables of one section share a map.";
    ProgramType = "program-type", "The program type is one that can be loaded.",
        "Name a program type that the kernel has, in SEC(…).";
    AttachTarget = "attach-target", "The program can be attached to what it names.",
        "Name a function, hook, tracepoint or operation that the kernel has and lets programs of this type attach to.";
    AttachType = "attach-type", "The expected attach type is one of the program type.",
        "Name a section whose attach type goes with the program type.";
    // Complexity.
    TooComplex = "too-complex", "All paths together are at most a million instructions.",
        "Do less on each path: bound loops with a constant, put their body into a global function (checked once), or use bpf_loop().";
    JumpSequence = "jump-sequence", "At most 8192 branches are open at once.",
        "Split the function: branches inside a global function are followed once for all callers.";
    InfiniteLoop = "infinite-loop", "A loop changes something on each round.",
        "Change the loop's counter on each round, and compare it with a constant.";
    // Values.
    UninitializedRegister = "uninitialized-register", "A register is written before it is read.",
        "Give the variable a value on every path that leads here.";
    PointerArithmetic = "pointer-arithmetic", "Pointers only take bounded additions and subtractions.",
        "Keep the number and the pointer apart: do the arithmetic on an index, and add that to the pointer.";
    PointerOutOfRange = "pointer-out-of-range", "Pointer offsets stay within ±512 MiB.",
        "Bound the number with a comparison before it is added to the pointer.";
    PointerComparison = "pointer-comparison", "Pointers are only compared with what the rules allow.",
        "Compare pointers for equality only, or packet pointers with data_end.";
    DivisionByZero = "division-by-zero", "Nothing is divided by the constant zero.",
        "Divide by a number other than zero.";
    InvalidShift = "invalid-shift", "A number is shifted by less than its width.",
        "Shift by less than the width of the number.";
    PossiblyNull = "possibly-null", "A pointer that may be null is checked first.",
        "Compare the pointer with NULL before it is used.";
    NotAPointer = "not-a-pointer", "Only pointers are dereferenced.",
        "Keep the pointer whole: no arithmetic in 32 bits, no casts through integers, and read kernel memory with bpf_probe_read_kernel().";
    UnboundedOffset = "unbounded-offset", "A variable offset has a checked lower and upper bound.",
        "Compare the index with the number of elements before it is used.";
    NegativeOffset = "negative-offset", "A variable offset is not negative.",
        "Make the index unsigned, or compare it with zero too.";
    Misaligned = "misaligned", "Accesses that must be aligned are.",
        "Access the field at its natural alignment, or copy it byte by byte.";
    // Memory.
    StackOutOfBounds = "stack-out-of-bounds", "Stack accesses stay within the 512 bytes below r10.",
        "Keep the index inside the local variable; all local variables of a function share 512 bytes.";
    StackUninitialized = "stack-uninitialized", "Stack bytes are written before they are read.",
        "Initialise the whole variable, padding included: `= {}`, or __builtin_memset().";
    StackVariableOffset = "stack-variable-offset", "This access needs a constant offset on the stack.",
        "Access the stack at a constant offset here: unroll the loop, or use a map value instead.";
    SpilledPointerCorrupt = "spilled-pointer-corrupt", "A pointer saved on the stack is read back whole.",
        "Do not overwrite or read a part of a saved pointer.";
    StackEscape = "stack-escape", "A pointer to a function's own stack does not leave it upwards.",
        "Return the data in memory that the caller passes, not a pointer to the own stack.";
    MapValueOutOfBounds = "map-value-out-of-bounds", "Accesses stay inside the map value.",
        "Compare the index with the number of elements in the value before it is used.";
    MapKeyOutOfBounds = "map-key-out-of-bounds", "Accesses stay inside the map key.",
        "Read the key inside its size.";
    MemoryOutOfBounds = "memory-out-of-bounds", "Accesses stay inside the memory region.",
        "Compare the index with the size of the memory before it is used.";
    PacketOutOfBounds = "packet-out-of-bounds", "A packet access is behind a comparison with data_end.",
        "Compare the end of what is accessed with data_end, and leave if it is beyond.";
    PacketAccess = "packet-access", "Programs of this type access packet data in the ways the kernel allows.",
        "Use bpf_skb_load_bytes() and bpf_skb_store_bytes(), which more program types have.";
    ReadOnlyMemory = "read-only-memory", "Read-only memory is not written.",
        "Write to a copy.";
    WriteOnlyMemory = "write-only-memory", "Write-only memory is not read.",
        "Remove BPF_F_WRONLY_PROG from the map's flags.";
    ContextAccess = "context-access", "Context accesses hit a field, whole and in its permitted direction.",
        "Access the field with its own type; wider fields may be read in part.";
    ContextModified = "context-modified", "The context pointer is used as it came.",
        "Pass the context pointer on as it came, and add no variable index to it.";
    MapPointerAccess = "map-pointer-access", "Of a map itself only known fields are read.",
        "Read the map by its helpers.";
    ConstantMap = "constant-map", "An array that never changes is loaded from only if it has one element.",
        "Put the constants into one element, or let programs write the map.";
    SpecialField = "special-field", "Special fields of map values are only touched by their helpers.",
        "Leave the field alone in loads and stores; copy the value member by member.";
    AtomicAccess = "atomic-access", "Atomic operations work on aligned words of permitted memory.",
        "Use atomic operations on aligned 32- or 64-bit words of maps or the stack.";
    PointerStore = "pointer-store", "Pointers are stored only where the rules allow.",
        "Store data there, not a pointer.";
    KernelObjectAccess = "kernel-object-access", "Accesses to kernel objects hit a member, a pointer whole.",
        "Access a member of the object's type with its own size; use BPF_CORE_READ() or bpf_probe_read_kernel() for others.";
    NeedsGpl = "needs-gpl", "Kernel objects are for GPL-compatible programs only.",
        "Declare the licence: `char LICENSE[] SEC(\"license\") = \"GPL\";`.";
    RcuSection = "rcu-section", "RCU read sections are opened and closed in pairs.",
        "Call bpf_rcu_read_lock() once, and bpf_rcu_read_unlock() on every path behind it.";
    // Calls.
    UnknownHelper = "unknown-helper", "The helper exists.",
        "Use a helper that this kernel has; test with bpf_core_enum_value_exists() first.";
    HelperNotAllowed = "helper-not-allowed", "The helper can be called by programs of this type.",
        "Use another program type, or another helper.";
    HelperNeedsGpl = "helper-needs-gpl", "Some helpers are for GPL-compatible programs only.",
        "Declare the licence: `char LICENSE[] SEC(\"license\") = \"GPL\";`.";
    HelperSleeps = "helper-sleeps", "Helpers that sleep are for sleepable programs.",
        "Make the program sleepable (a section with `.s`), or use the variant that does not sleep.";
    ArgumentType = "argument-type", "Arguments are of the kinds that the function wants.",
        "Pass an argument of the kind that the function wants.";
    ArgumentSize = "argument-size", "A size argument is bounded and fits the memory it describes.",
        "Compare the size with the size of the buffer before the call; make it unsigned.";
    ArgumentConstant = "argument-constant", "Some arguments are constants known at load time.",
        "Pass a constant.";
    ConstantString = "constant-string", "A format string is constant, terminated and well-formed.",
        "Pass a string constant from .rodata (`static const char fmt[] = …`) with specifiers that BPF knows.";
    MapNotForHelper = "map-not-for-helper", "Helper and map type fit.",
        "Use the helper that belongs to this map type.";
    UnknownMap = "unknown-map", "A map argument is one known map.",
        "Pass the address of one map; choose between maps with a map of maps.";
    UnknownKfunc = "unknown-kfunc", "The kernel has the function, and it takes what programs can pass.",
        "Use a kernel function that this kernel has; test with bpf_ksym_exists() first.";
    KfuncNotAllowed = "kfunc-not-allowed", "The kernel function can be called by programs of this type.",
        "Use another program type, or a helper.";
    UntrustedPointer = "untrusted-pointer", "Kernel functions take pointers to objects that are known to exist.",
        "Acquire a reference, or load the pointer inside of bpf_rcu_read_lock() and bpf_rcu_read_unlock().";
    GlobalFunction = "global-function", "Global functions have BTF types that can be checked.",
        "Pass what the function's prototype says, or make the function static.";
    SubprogramReturn = "subprogram-return", "Functions return numbers.",
        "Return a number; give pointers back through memory of the caller.";
    CallNeedsPrivilege = "call-needs-privilege", "The call is possible where it stands.",
        "Load the program with the capability that the call needs.";
    // References and locks.
    UnreleasedReference = "unreleased-reference", "Every acquired reference is released on every path.",
        "Release the reference on every path, also on those of errors.";
    ReleaseWithoutAcquire = "release-without-acquire", "Only an acquired reference, unmodified, is released.",
        "Release exactly the pointer that the acquiring call returned, once.";
    LockNeeded = "lock-needed", "Lists and trees are used while the lock beside them is held.",
        "Take the bpf_spin_lock of the same map value or object first.";
    LockHeld = "lock-held", "Locks and critical sections are left in order.",
        "Release the lock first.";
    // Objects on the stack.
    DynptrState = "dynptr-state", "A dynptr is made on the stack before it is used, and is not overwritten while it holds a record.",
        "Declare the dynptr as a local variable, make it with one call on every path, and let only dynptr functions touch it.";
    IteratorState = "iterator-state", "An iterator is made, asked for elements, and destroyed, in this order, at one place of the stack.",
        "Call the iterator's new function on every path before next and destroy, and destroy it once.";
    PreemptSection = "preempt-section", "Preemption is enabled as often as it was disabled.",
        "Call bpf_preempt_enable() once for each bpf_preempt_disable(), on every path.";
    IrqSection = "irq-section", "Interrupts are restored in the reverse order, from where they were saved.",
        "Restore with the variable that bpf_local_irq_save() filled, last saved first, on every path.";
    SleepInSection = "sleep-in-section", "Nothing sleeps while it must not.",
        "Call what sleeps outside of the section, in a sleepable program.";
    Exception = "exception", "Exceptions are thrown and caught where that is possible.",
        "Release what is held before bpf_throw(), and do not throw from callbacks.";
    // Exit.
    ReturnValue = "return-value", "The return value is in the range of the program type.",
        "Return one of the values that the program type knows.";
    ReturnPointer = "return-pointer", "A program returns a number, not a pointer.",
        "Return a number.";
    // Bounds of skep.
    UnsupportedProgramType = "unsupported-program-type", "This program type is not judged yet.",
        "Skep cannot help here yet; ask a kernel.";
    UnsupportedHelper = "unsupported-helper", "This helper is not judged yet.",
        "Skep cannot help here yet; ask a kernel.";
    UnsupportedKfunc = "unsupported-kfunc", "Kernel functions are not judged yet.",
        "Skep cannot help here yet; ask a kernel.";
    UnsupportedMapType = "unsupported-map-type", "This map type is not judged yet.",
        "Skep cannot help here yet; ask a kernel.";
    UnsupportedFeature = "unsupported-feature", "This feature is not judged yet.",
        "Skep cannot help here yet; ask a kernel.";
    KernelTypes = "kernel-types", "Programs that use kernel objects are judged by the kernel's types.",
        "Give the types of the kernel that the program is for (`--btf`).";
    UnsupportedArgument = "unsupported-argument", "Arguments of this kind are not judged yet.",
        "Skep cannot help here yet; ask a kernel.";
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
