//! A stand-in for NVIDIA's libcuda and libcublasLt: a shared library with the functions of both that ptune calls, which
//! runs the emulated kernels of `cuda/`. A program that finds it by the loader's path takes it for a GPU, so that
//! `--device cuda` itself, from the search for the driver to the last handle given back, is tested where there is no GPU.
//!
//! Streams keep what is asked of them until something waits, or for as long as chance wants (PTUNE_STAND_IN_TIMING:
//! `now`, `late`, or a number that seeds the chance); memory starts out as NaNs; what no driver takes (a null stream, a
//! thread without a context, shared memory that was not asked for, a copy beside its memory) is refused with a reason
//! on standard error. PTUNE_STAND_IN_REPORT names a file that gets counts of all calls, and of what was not given back,
//! when the process ends.
//!
//! Signatures are those of cudarc's bindings, which are made from NVIDIA's headers: `exported!` compares them. What the
//! functions do is from NVIDIA's documentation; only a GPU can tell whether that was understood.

mod driver;
mod products;
mod world;

/// Defines functions under their names in NVIDIA's libraries, each counted, and compares their types with the bindings.
/// A body sees the world, and answers with what is wrong.
macro_rules! exported {
    ($bindings:path, $status:ty; $(fn $name:ident($world:ident $(, $argument:ident: $type:ty)*) $body:block)*) => {
        $(
            /// # Safety
            /// As NVIDIA's documentation of the function says.
            #[unsafe(no_mangle)]
            #[allow(non_snake_case, clippy::too_many_arguments)]
            pub unsafe extern "C" fn $name($($argument: $type),*) -> $status {
                // Its unsafe blocks count on the caller's promise.
                #[allow(non_snake_case, unused_variables, clippy::too_many_arguments)]
                fn answer($world: &mut $crate::world::World $(, $argument: $type)*) -> $crate::world::Answer {
                    $body
                }
                let mut world = $crate::world::world();
                world.count(stringify!($name));
                let answer = answer(&mut world $(, $argument)*);
                <$status as $crate::world::Status>::of(world.answer(stringify!($name), answer))
            }
            const _: () = {
                use $bindings as bindings;
                let _: unsafe fn($($type),*) -> $status = bindings::$name;
            };
        )*
    };
}
pub(crate) use exported;
