//! `#[ops]`.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::{Error, FnArg, GenericArgument, ItemTrait, Lifetime, PathArguments, Result, TraitItem, Type, parse_quote};

pub(crate) fn ops(mut item: ItemTrait) -> Result<TokenStream> {
    if !item.generics.params.is_empty() {
        return Err(Error::new_spanned(&item.generics, "programs know no generic types"));
    }
    let (mut names, mut contexts, mut optional, mut calls) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for method in &mut item.items {
        let TraitItem::Fn(method) = method else {
            return Err(Error::new_spanned(method, "a table has operations, and nothing else"));
        };
        let attrs = method.attrs.len();
        method.attrs.retain(|a| !a.path().is_ident("optional"));
        optional.push(method.attrs.len() != attrs);
        let sig = &method.sig;
        let mut inputs = sig.inputs.iter();
        let context = match (inputs.next(), inputs.next(), inputs.next()) {
            (Some(FnArg::Receiver(this)), Some(FnArg::Typed(context)), None)
                if this.reference.is_some() && this.mutability.is_none() && method.default.is_none() =>
            {
                match &*context.ty {
                    Type::Reference(r) if r.mutability.is_some() => Some((&context.pat, &*r.elem)),
                    _ => None,
                }
            }
            _ => None,
        };
        let Some((arg, ty)) = context else {
            return Err(Error::new_spanned(sig, "an operation takes &self and its context, &mut C, and has no body"));
        };
        let name = &sig.ident;
        calls.push(quote! {
            #sig {
                self.#name.call(#arg)
            }
        });
        names.push(sig.ident.clone());
        contexts.push(kept(ty));
    }
    let (of, ident, vis) = (&item.ident, format_ident!("{}Ops", item.ident), &item.vis);
    let texts: Vec<String> = names.iter().map(ToString::to_string).collect();
    let doc = format!("The operations of [`{of}`], which a plug-in has.");
    Ok(quote! {
        #item

        #[doc = #doc]
        #[derive(Clone, Debug)]
        #vis struct #ident {
            table: ::skep::host::OpTable,
            #(#names: ::skep::host::Op<#contexts>,)*
        }

        impl #ident {
            /// A table that no plug-in has.
            #vis fn new(host: &::skep::host::Host, name: &str, options: &::skep::host::HookOptions) -> Self {
                let mut table = host.op_table(name);
                #(let #names = table.op(#texts, #optional, ::core::clone::Clone::clone(options));)*
                Self { table: table.finish(), #(#names,)* }
            }

            /// The table, for plug-ins.
            #vis fn table(&self) -> &::skep::host::OpTable {
                &self.table
            }

            /// A loader that knows the operations, too.
            #vis fn loader(&self, loader: ::skep::host::Loader) -> ::skep::host::Loader {
                #(let loader = loader.hook(self.#names.hook());)*
                loader
            }
        }

        impl #of for #ident {
            #(#calls)*
        }
    })
}

/// The type of a context as a struct keeps it: a handle of it serves contexts that borrow for shorter.
fn kept(ty: &Type) -> Type {
    let mut ty = ty.clone();
    if let Type::Path(path) = &mut ty {
        for segment in &mut path.path.segments {
            let PathArguments::AngleBracketed(args) = &mut segment.arguments else { continue };
            for arg in &mut args.args {
                if let GenericArgument::Lifetime(lifetime) = arg {
                    let all: Lifetime = parse_quote!('static);
                    *lifetime = all;
                }
            }
        }
    }
    ty
}
