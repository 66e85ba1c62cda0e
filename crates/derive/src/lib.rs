//! `#[derive(Context)]` and `#[functions]`: see `skep::host`.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

use proc_macro2::TokenStream;
use quote::quote;
use syn::{Attribute, Data, DeriveInput, Error, Field, Fields, LitStr, Result, parse_macro_input, parse_quote};

mod functions;
mod ops;

/// Has programs call the methods of an `impl` block: `skep::host::Host::functions` takes a value of the type.
///
/// Methods take `&self` and up to five arguments: integers, `bool`, `Memory` and `MemoryMut` (which count for two), and
/// objects: `&T` of one that the program holds, `Option<&T>` of one or null, `Arc<T>` to take it from the program. They give
/// an integer, `bool`, nothing, or an `Arc<T>` or `Option<Arc<T>>`, which the program then holds and must give back.
#[proc_macro_attribute]
pub fn functions(_: proc_macro::TokenStream, block: proc_macro::TokenStream) -> proc_macro::TokenStream {
    let block = parse_macro_input!(block as syn::ItemImpl);
    functions::functions(&block).unwrap_or_else(|e| e.to_compile_error()).into()
}

/// Describes a struct as the context of a hook: its members to the verifier, in C, and as BTF.
///
/// The struct is `#[repr(C)]`. Members are integers, arrays of integers, `skep::host::Bytes` and `skep::host::BytesMut`.
/// Programs may read them; with `#[context(write)]` they may write an integer or array, too; with `#[context(hidden)]` they
/// may do neither, and the member can be of any type. In C the struct has the name of the Rust one in lower case with
/// underscores, or what `#[context(name = "…")]` on it says.
#[proc_macro_derive(Context, attributes(context))]
pub fn derive_context(input: proc_macro::TokenStream) -> proc_macro::TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    context(&input).unwrap_or_else(|e| e.to_compile_error()).into()
}

/// Makes a table of operations of a trait: a struct with the trait's name and `Ops`, which implements it by calling programs.
///
/// Methods take `&self` and the operation's context, `&mut C`, and give `skep::host::OpResult`; those with `#[optional]`
/// a plug-in may lack. The struct has `new(&Host, name, &HookOptions)`, `table()`, and `loader(Loader)`, which adds the
/// operations to what a loader knows; programs are in sections `hook/NAME/METHOD`.
#[proc_macro_attribute]
pub fn ops(_: proc_macro::TokenStream, item: proc_macro::TokenStream) -> proc_macro::TokenStream {
    let item = parse_macro_input!(item as syn::ItemTrait);
    ops::ops(item).unwrap_or_else(|e| e.to_compile_error()).into()
}

fn context(input: &DeriveInput) -> Result<TokenStream> {
    let Data::Struct(data) = &input.data else {
        return Err(Error::new_spanned(&input.ident, "a context is a struct"));
    };
    let Fields::Named(fields) = &data.fields else {
        return Err(Error::new_spanned(&input.ident, "the members of a context have names"));
    };
    if !is_repr_c(&input.attrs)? {
        return Err(Error::new_spanned(&input.ident, "a context is #[repr(C)]: programs know where its members are"));
    }
    if let Some(param) = input.generics.type_params().next() {
        return Err(Error::new_spanned(param, "a context has no type parameters: its layout would depend on them"));
    }
    let mut name = snake_case(&input.ident.to_string());
    for attr in input.attrs.iter().filter(|a| a.path().is_ident("context")) {
        attr.parse_nested_meta(|meta| {
            if !meta.path.is_ident("name") {
                return Err(meta.error("a context has `name = \"…\"`"));
            }
            name = meta.value()?.parse::<LitStr>()?.value();
            Ok(())
        })?;
    }
    let mut defs = Vec::new();
    let mut bounds = Vec::new();
    for field in &fields.named {
        let access = access(field)?;
        if access.hidden {
            continue;
        }
        let Some(ident) = &field.ident else { continue };
        let (ty, write, text) = (&field.ty, access.write, ident.to_string());
        defs.push(quote! {
            ::skep::host::FieldDef {
                name: #text,
                offset: ::core::mem::offset_of!(Self, #ident),
                ty: <#ty as ::skep::host::Field>::TYPE,
                write: #write,
            }
        });
        let bound: syn::WherePredicate = parse_quote!(#ty: ::skep::host::Field);
        bounds.push(bound);
    }
    let ident = &input.ident;
    let (generics, args, given) = input.generics.split_for_impl();
    let given = given.map(|g| g.predicates.iter().collect::<Vec<_>>()).unwrap_or_default();
    Ok(quote! {
        // SAFETY: the struct is `repr(C)`, offsets and types are the compiler's own, and what programs may write is an
        // integer or an array of integers.
        #[automatically_derived]
        #[allow(unsafe_code, reason = "what the macro writes is true of any struct that it takes")]
        unsafe impl #generics ::skep::host::Context for #ident #args where #(#given,)* #(#bounds,)* {
            const NAME: &'static str = #name;
            const FIELDS: &'static [::skep::host::FieldDef] = &[#(#defs),*];
        }
    })
}

struct Access {
    write: bool,
    hidden: bool,
}

fn access(field: &Field) -> Result<Access> {
    let mut access = Access { write: false, hidden: false };
    for attr in field.attrs.iter().filter(|a| a.path().is_ident("context")) {
        attr.parse_nested_meta(|meta| {
            if meta.path.is_ident("write") {
                access.write = true;
            } else if meta.path.is_ident("hidden") {
                access.hidden = true;
            } else {
                return Err(meta.error("a member has `write` or `hidden`"));
            }
            Ok(())
        })?;
        if access.write && access.hidden {
            return Err(Error::new_spanned(attr, "a hidden member cannot be written"));
        }
    }
    Ok(access)
}

fn is_repr_c(attrs: &[Attribute]) -> Result<bool> {
    let mut is_c = false;
    for attr in attrs.iter().filter(|a| a.path().is_ident("repr")) {
        attr.parse_nested_meta(|meta| {
            if meta.path.is_ident("C") {
                is_c = true;
                return Ok(());
            }
            if meta.path.is_ident("align") {
                let size;
                syn::parenthesized!(size in meta.input);
                return size.parse::<syn::LitInt>().map(drop);
            }
            // A packed struct has members that no C compiler would load.
            Err(meta.error("a context is repr(C), perhaps with align"))
        })?;
    }
    Ok(is_c)
}

fn snake_case(name: &str) -> String {
    let mut out = String::new();
    for (n, c) in name.chars().enumerate() {
        if c.is_uppercase() && n != 0 {
            out.push('_');
        }
        out.extend(c.to_lowercase());
    }
    out
}
