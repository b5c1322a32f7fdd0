//! The program `ptune`.

fn main() -> std::process::ExitCode {
    ptune::cli::main()
}
