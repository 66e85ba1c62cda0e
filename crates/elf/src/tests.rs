use skep_ebpf::asm::assemble;

use crate::testing::*;
use crate::*;

#[test]
fn sample_links() {
    let object = Object::parse("dir/my_sample.bpf.o", &sample()).unwrap();
    let program = object.program("prog", &LoadOptions::default()).unwrap();
    let code = "r1 = map[idx:0]\nr2 = map[idx:1][0]+8\ncall pc+1\nexit\nr0 = 1\nexit";
    assert_eq!(program.insns, assemble(code).unwrap());
    let names: Vec<&str> = object.maps().iter().map(|m| m.name.as_str()).collect();
    assert_eq!(names, ["counts", "my_sampl.bss"]);
}
