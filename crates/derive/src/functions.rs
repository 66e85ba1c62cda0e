//! `#[functions]`.

use proc_macro2::TokenStream;
use quote::quote;
use syn::{Error, FnArg, ImplItem, ItemImpl, Pat, Result, ReturnType, Signature};

pub(crate) fn functions(block: &ItemImpl) -> Result<TokenStream> {
    if let Some((_, of, _)) = &block.trait_ {
        return Err(Error::new_spanned(of, "programs call methods of the type itself"));
    }
    if !block.generics.params.is_empty() {
        return Err(Error::new_spanned(&block.generics, "programs know no generic types"));
    }
    let of = &block.self_ty;
    let methods = block.items.iter().filter_map(|item| match item {
        ImplItem::Fn(method) => Some(function(&method.sig)),
        _ => None,
    });
    let methods = methods.collect::<Result<Vec<_>>>()?;
    Ok(quote! {
        #block

        // SAFETY: what is taken from the registers, and what is given, is of the types that the definitions name.
        #[automatically_derived]
        #[allow(unsafe_code, reason = "what the macro writes is true of any methods that it takes")]
        unsafe impl ::skep::host::Functions for #of {
            const FUNCTIONS: &'static [::skep::host::Function<Self>] = &[#(#methods),*];
        }
    })
}

fn function(sig: &Signature) -> Result<TokenStream> {
    if let Some(token) = &sig.asyncness {
        return Err(Error::new_spanned(token, "programs do not wait"));
    }
    if !sig.generics.params.is_empty() {
        return Err(Error::new_spanned(&sig.generics, "programs know no generic functions"));
    }
    let mut inputs = sig.inputs.iter();
    match inputs.next() {
        Some(FnArg::Receiver(this)) if this.reference.is_some() && this.mutability.is_none() => {}
        _ => return Err(Error::new_spanned(sig, "a function takes &self: programs on many threads call it")),
    }
    let (mut names, mut types) = (Vec::new(), Vec::new());
    for input in inputs {
        let FnArg::Typed(input) = input else { continue };
        let Pat::Ident(name) = &*input.pat else {
            return Err(Error::new_spanned(&input.pat, "a parameter has a name"));
        };
        names.push(name.ident.to_string());
        types.push(&input.ty);
    }
    let (method, name) = (&sig.ident, sig.ident.to_string());
    let returns = match &sig.output {
        ReturnType::Default => quote!(()),
        ReturnType::Type(_, ty) => quote!(#ty),
    };
    let values: Vec<_> = (0..types.len()).map(|n| quote::format_ident!("argument_{n}")).collect();
    let take = match values.is_empty() {
        true => quote!(),
        false => quote! {
            // SAFETY: the caller's promise: they are the arguments of this function.
            let (#(#values,)*) = unsafe { (#(registers.take::<#types>(),)*) };
        },
    };
    Ok(quote! {
        ::skep::host::Function {
            def: ::skep::host::FunctionDef {
                name: #name,
                params: &[#((#names, <#types as ::skep::host::Argument>::PARAM)),*],
                returns: <#returns as ::skep::host::Returned>::RETURN,
            },
            call: |this, registers| {
                #take
                let result: #returns = this.#method(#(#values),*);
                registers.give(result)
            },
        }
    })
}
